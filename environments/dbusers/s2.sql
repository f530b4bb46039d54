-- A replica. s50112 and u100102 are missing.
CREATE TABLE server_accounts (
  user text NOT NULL, host text NOT NULL DEFAULT '%', password_hash text, locked integer NOT NULL DEFAULT 0,
  max_user_connections integer NOT NULL DEFAULT 0, is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host)
);
CREATE TABLE server_grants (
  user text NOT NULL, host text NOT NULL DEFAULT '%', granted_on text NOT NULL, privilege text NOT NULL,
  PRIMARY KEY (user, host, granted_on, privilege)
);
CREATE TABLE server_databases (name text NOT NULL PRIMARY KEY);
INSERT INTO server_accounts (user, host, is_role) VALUES ('labsdbuser', '', 1);
INSERT INTO server_accounts (user, password_hash, max_user_connections) VALUES
  ('s50014', '*6BB4837EB74329105EE4568DDA7DC67ED2CA2AD9', 10),
  ('s50107', '*531E182E2F72080AB0740FE2F2D689DBE0146E04', 10),
  ('u100101', '*7297C3E22DEF91303FC493D3FE158AD4967304F6', 10),
  ('p4711', '*667F407DE7C6AD07358FA38DAED7828A72014B4E', 10);
INSERT INTO server_grants (user, granted_on, privilege) VALUES
  ('s50014', 'roles', 'labsdbuser'),
  ('s50014', 'default role', 'labsdbuser'),
  ('s50107', 'roles', 'labsdbuser'),
  ('s50107', 'default role', 'labsdbuser'),
  ('u100101', 'roles', 'labsdbuser'),
  ('u100101', 'default role', 'labsdbuser'),
  ('p4711', 'roles', 'labsdbuser'),
  ('p4711', 'default role', 'labsdbuser');
