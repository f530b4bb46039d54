-- ToolsDB: no roles and no accounts of PAWS. s50112 is missing; s50107 was once granted a pattern whose `_` stand for any
-- character, which is not its own databases.
CREATE TABLE server_accounts (
  user text NOT NULL, host text NOT NULL DEFAULT '%', password_hash text, locked integer NOT NULL DEFAULT 0,
  max_user_connections integer NOT NULL DEFAULT 0, is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host)
);
CREATE TABLE server_grants (
  user text NOT NULL, host text NOT NULL DEFAULT '%', granted_on text NOT NULL, privilege text NOT NULL,
  PRIMARY KEY (user, host, granted_on, privilege)
);
CREATE TABLE server_databases (name text NOT NULL PRIMARY KEY);
INSERT INTO server_accounts (user, password_hash, max_user_connections) VALUES
  ('s50014', '*6BB4837EB74329105EE4568DDA7DC67ED2CA2AD9', 0),
  ('s50107', '*531E182E2F72080AB0740FE2F2D689DBE0146E04', 0),
  ('u100101', '*7297C3E22DEF91303FC493D3FE158AD4967304F6', 0),
  ('u100102', '*AA1420F182E88B9E5F874F6FBE7459291E8F4601', 0);
INSERT INTO server_grants (user, granted_on, privilege) VALUES
  ('s50014', '`%\_p`.*', 'SELECT'),
  ('s50014', '`%\_p`.*', 'SHOW VIEW'),
  ('s50014', '`s50014\_\_%`.*', 'ALL PRIVILEGES'),
  ('u100101', '`%\_p`.*', 'SELECT'),
  ('u100101', '`%\_p`.*', 'SHOW VIEW'),
  ('u100101', '`u100101\_\_%`.*', 'ALL PRIVILEGES'),
  ('u100102', '`%\_p`.*', 'SELECT'),
  ('u100102', '`%\_p`.*', 'SHOW VIEW'),
  ('u100102', '`u100102\_\_%`.*', 'ALL PRIVILEGES');
INSERT INTO server_grants (user, granted_on, privilege) VALUES
  ('s50107', '`%\_p`.*', 'SELECT'),
  ('s50107', '`%\_p`.*', 'SHOW VIEW'),
  ('s50107', '`s50107__%`.*', 'ALL PRIVILEGES');
