-- ToolsDB, where none of these tools has a database.
CREATE TABLE server_accounts (
  user text NOT NULL, host text NOT NULL DEFAULT '%', password_hash text, locked integer NOT NULL DEFAULT 0,
  max_user_connections integer NOT NULL DEFAULT 0, is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host)
);
CREATE TABLE server_grants (
  user text NOT NULL, host text NOT NULL DEFAULT '%', granted_on text NOT NULL, privilege text NOT NULL,
  PRIMARY KEY (user, host, granted_on, privilege)
);
CREATE TABLE server_databases (name text NOT NULL PRIMARY KEY);
