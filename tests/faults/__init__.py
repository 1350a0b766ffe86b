"""Faults, provoked for real from outside the server, and what must hold during each.

tests/harness/account.py compares events. These counts must all be 0: LOST = acked − stored, PHANTOM = stored − sent,
DUPLICATE, CORRUPT (stored in a form other than the one sent, or under a seq other than the acked one), and replies that
belong to no line. SQLite must find the file sound. After the events of unknown fate have been resent, stored = sent.

Three environment variables, for runs by hand:

- ``AGGREGATOR_FAULTS=long``: as many rounds as a release deserves, instead of as many as CI has time for (``sizes``);
- ``AGGREGATOR_FAULTS_RESULT=FILE``: write the measurements of each test into one JSON file (``record``);
- ``AGGREGATOR_FAULTS_SEED=NUMBER``: the random moments of an earlier run, which printed the number.

The times here hold on a quiet machine; the assertions are wider (``sizes.SLACK``). The docstrings of the tests name the
faults by these numbers:

| fault | where | what must hold |
|---|---|---|
| T1 kill -9 under load | test_kill | LOST = 0, healthy within 2 s |
| T2 power cut | test_power_cut, test_write_errors | LOST = 0, sound, in each round |
| T3 power cut without a sync at commit | test_power_cut | LOST > 0, or the harness is blind |
| T4 order of system calls | test_fsync_before_ack | 1,000 acks, each after the sync of its own bytes |
| T5 EIO at a WAL sync, once | test_io_errors, test_write_errors | no ack from then on, exit code 1 within 1 s |
| T6 EIO at each WAL sync | test_io_errors | no ack, each life ends within 1 s in at most 5 lines |
| T7 EIO at checkpoints | test_io_errors, test_write_errors | degraded within 10 s, WAL below its limit |
| T8 slow disk | test_slow_disk | acks within two commits, HEALTH within 50 ms, PING within 20 ms (p99) |
| T9 full disk, limit on files, read-only | test_full_disk | full: acks again within 2 s; the others: exit code 1 |
| T10 the n-th system call fails | test_io_errors | each n: LOST = 0, sound, no hang |
| T11 … in the recovery from kill -9 | test_io_errors | one line and exit code 1; the next start: LOST = 0 |
| T12 death between commit and ack | test_kill | seen to happen; resent: duplicate |
| T13 cancelled commit | test_parts_that_fail | the sender that waits for it is told nothing |
| T14 reader that does not let go | test_other_programs | acks go on; the WAL is cut within 10 s of the reader's end |
| T15 writer that holds the lock | test_other_programs | no error, senders wait, PING within 20 ms (p99) |
| T16 second server | tests/test_start | refused within 1 s; the first has no error |
| T17 damaged files | test_damaged_files, tests/test_start | never an empty database in place of the old one |
| T18 start with a large WAL | test_kill | first ack within 5 s |
| T19 weakened settings | test_damaged_files | found at the start: exit code 1 |
| T20 one poison event among 500 | test_bad_bytes | 499 acks, one rejection |
| T21 one id everywhere | tests/test_dedup | one row, the first body |
| T22 8 clients pipeline good, bad and commands | test_replies | replies = lines, in order |
| T23 any split of any stream | test_replies, tests/test_lines | the same replies |
| T24 over-long lines | test_bad_bytes | one too_long, no tail parsed, memory bounded |
| T25 line ends | tests/test_connection | as README says; no part of a line is stored after a reset |
| T26 JSON at its edges | test_bad_bytes | the documented reply, no traceback |
| T27 nesting | test_bad_bytes | alive, memory bounded |
| T28 200,000 mutated lines | test_bad_bytes | one reply each, which agrees with Python's JSON parser |
| T29 pauses, kills, stops, resets | test_pause_and_kill | LOST = 0, connections outlive a pause |
| T30 silent reader | test_slow_and_greedy_peers | muted in time, its events stored, the polite served |
| T31 500 half-sent lines | test_slow_and_greedy_peers | ended at the deadline, the polite served |
| T32 more connections than allowed | test_connection_floods | busy, and places back within 1 s |
| T33 no descriptors left | test_connection_floods | commits go on, little CPU, one line a second |
| T34 half-close | tests/test_connection | all acks, then the end |
| T35 1,000 resets in mid-batch, on each loop | test_connection_floods | no traceback, the others' acks all there |
| T36 cut network | test_network | LOST = 0, the dead peer noticed |
| T37 throttled path | test_network | nobody else held up, memory bounded |
| T38 flooder | test_slow_and_greedy_peers | polite clients get their share |
| T39 churn | test_connection_floods | descriptors and memory back |
| T40 stalled disk, 50 flooders | test_slow_disk | no OOM, queue bounded, RSS below 96 MiB and SQLite's cache |
| T41 soak at half of peak | test_soak | memory, descriptors, WAL and latency level |
| T42 SIGTERM under load | tests/test_durability | nobody new, all read is answered, exit code 0 within 5 s, no WAL |
| T43 SIGTERM with idle clients | tests/test_durability | exit code 0 in time, on both loops |
| T44 second signal; kill -9 while stopping | tests/test_durability, test_kill | end within 1 s; LOST = 0 |
| T45 SIGTERM with a stuck disk | test_slow_disk | ends at the deadline with exit code 1, acks nothing |
| T46 a defect in a part | test_parts_that_fail, tests/test_consumer | exit code 1 in 2 s; a connection: ends alone |
| T47 process 1 | test_parts_that_fail | SIGTERM: exit code 0 within 5 s |
| T48 port in use, no permission, no folder | tests/test_start | exit code 1, one clear line |
| T49 files removed, renamed, replaced | test_files_gone | no further ack, exit code 1 within 2 s, one line |
| T50 foreign writers; a second server without the lock | test_files_gone | LOST = 0, no seq twice; HEALTH, log tell |
| T51 lines that take as much work as their bytes allow | test_worst_lines | another's PING within 150 ms (p99) |
| T52 16 greedy readers | test_worst_lines | another's small answer within 300 ms |
| T53 NUL bytes, counted octets, an endless array | test_framing | named, counted, ended; nothing stored |
| T54 PROXY headers, cut anywhere | test_framing | no reply is taken for an event's |
| T55 half of a surrogate pair | test_framing | kept byte for byte, no neighbour harmed |
| T56 a log that nobody reads | tests/test_log | acks, HEALTH and SIGTERM go on; what is left out is counted |
| T57 SIGHUP, SIGUSR1, a second signal too soon | tests/test_signals | SIGHUP drains in a terminal, else reloads |
| T58 a database that cannot be written | tests/test_ready | no "ready", exit code 1; full or locked: degraded |
| T59 standard streams closed, full, or Latin-1 | tests/test_streams | no traceback; no database at descriptors 0 to 2 |
| T60 addresses, IPv6, empty variables | tests/test_listen | nothing listens beyond loopback unless told to |
| T61 rotation, copytruncate, equal lines, restarts of send | tests/send | no line lost, none twice |
| T62 restarts under programs that keep nothing | tests/test_producers | socket from outside: LOST = 0 on SIGTERM |
| T63 any bytes on the wrap port | tests/wrap | all is stored, or named in the log |
| T64 kill -9 between a Forward commit and its ack | tests/test_activation, tests/forward | LOST = 0, none twice |
| T65 a Forward client that never reads acks | tests/forward | muted; its events are stored; nobody held up |
| T66 TLS clients that only write, or end by FIN | tests/tls/test_clients | all is acked or stored; not with tickets |
| T67 strangers and floods at a TLS port | tests/tls/test_strangers | known clients are served; memory is bounded |
| T68 broken certificates at the start and at SIGHUP | tests/tls/test_certificates | one line; the old ones serve on |
| T69 socket files of killed and of running servers | tests/test_sockets | replaced; left alone |

Readers: lost (acked, in a range that was said to be complete, and not delivered), doubled, disordered and phantom
events must all be 0 (tests/harness/reading.py).

| | where | and |
|---|---|---|
| R1 any interleaving of commits, slices, pauses | tests/test_feed | as a plain list has it |
| R2 readers that join under load | test_readers_under_load | each is told once that it has caught up |
| R3 resuming at any line's seq | tests/test_subscribe | exactly the rest |
| R4 slow, stopped and never reading readers | test_readers_under_load | others unharmed, memory bounded |
| R5 a reader that falls behind again and again | test_readers_under_load | it comes back each time |
| R6 kill -9 under load | test_readers_killed | what was delivered is there; readers resume by seq and by name |
| R7 death between ACK, commit and answer | test_readers_killed | an answered ACK is never undone |
| R8 SIGTERM with readers in every state | test_readers_stop | exit code 0 in time, told where to resume |
| R9 EIO, a damaged block in the backlog | test_readers_stop, tests/test_reader | that reader is told, others go on |
| R10 full disk | test_readers_full_disk, tests/test_cursors | deliveries go on, ACK says storage_full |
| R11 readers that vanish | test_readers_network, test_readers_under_load | their places are freed in time |
| R12 everything on one connection, pipelined | tests/test_subscribe | replies in the order of their lines |
| R13 half-close, netcats | tests/test_subscribe | all is delivered |
| R14 patterns, 100,000 topics | tests/test_pattern, tests/test_subscribe, tests/test_reader | as SQLite's GLOB |
| R15 odd events | tests/test_subscribe | byte for byte |
| R16 WAIT | tests/test_events, tests/test_feed | one reply each |
| R17 a clock that steps back | tests/test_events, tests/test_reader | received_at never falls, SINCE is exact |
| R18 catching up at full load | test_readers_under_load | the WAL is cut as always, memory level |
| R19 two readers with one name | tests/test_cursors, tests/test_feed | the newest wins at once |
| R20 events that are removed | tests/test_reader, tests/test_feed, tests/test_subscribe | the gap is named exactly |
| R21 foreign positions, stores, patterns | tests/test_subscribe, tests/test_cursors | refused, nothing delivered |
| R22 a defect in publishing, in catching up | test_readers_defects, tests/test_feed | acks unharmed, readers complete |
| R23 README's sessions, tail, export, a mirror | tests/test_readme, tests/test_tail, tests/test_export | equal bytes |
"""
