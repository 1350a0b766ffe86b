"""PostgreSQL as an engine: any number of servers on one database, in lanes. Needs psycopg, the extra ``postgres``."""
