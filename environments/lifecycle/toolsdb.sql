-- ToolsDB: old-map has two databases, quick-go has an account and no database. Another account's number begins with that of
-- old-map; as a pattern, `s50031__%` would reach its database.
CREATE TABLE server_accounts (
  user text NOT NULL, host text NOT NULL DEFAULT '%', password_hash text, locked integer NOT NULL DEFAULT 0,
  max_user_connections integer NOT NULL DEFAULT 0, is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host)
);
CREATE TABLE server_grants (
  user text NOT NULL, host text NOT NULL DEFAULT '%', granted_on text NOT NULL, privilege text NOT NULL,
  PRIMARY KEY (user, host, granted_on, privilege)
);
CREATE TABLE server_databases (name text NOT NULL PRIMARY KEY);
INSERT INTO server_accounts (user, password_hash) VALUES
  ('s50031', '*6BB4837EB74329105EE4568DDA7DC67ED2CA2AD9'),
  ('s50032', '*531E182E2F72080AB0740FE2F2D689DBE0146E04'),
  ('s500312', '*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19');
INSERT INTO server_grants (user, granted_on, privilege) VALUES
  ('s50031', '`s50031\_\_%`.*', 'ALL PRIVILEGES'),
  ('s50032', '`s50032\_\_%`.*', 'ALL PRIVILEGES'),
  ('s500312', '`s500312\_\_%`.*', 'ALL PRIVILEGES');
INSERT INTO server_databases (name) VALUES ('s50031__links'), ('s50031__maps'), ('s500312__birds');
CREATE TABLE "s50031__links.pages" (page integer PRIMARY KEY, title text NOT NULL);
INSERT INTO "s50031__links.pages" VALUES (1, 'Bridges'), (2, 'Canals'), (3, 'Ferries');
CREATE TABLE "s50031__maps.sheets" (sheet text PRIMARY KEY, scale integer);
INSERT INTO "s50031__maps.sheets" VALUES ('north', 25000), ('south', NULL);
CREATE TABLE "s500312__birds.seen" (name text PRIMARY KEY);
INSERT INTO "s500312__birds.seen" VALUES ('heron');
