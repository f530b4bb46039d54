-- The database labsdbaccounts: which accounts there are, and on which server each is.
CREATE TABLE account (
  id integer PRIMARY KEY,
  mysql_username varchar(255) NOT NULL,
  type text NOT NULL CHECK (type IN ('tool', 'user', 'paws')),
  username varchar(255) NOT NULL,
  password_hash varchar(41) NOT NULL,
  UNIQUE (type, username)
);
CREATE TABLE account_host (
  id integer PRIMARY KEY,
  account_id integer NOT NULL,
  hostname varchar(255) NOT NULL,
  status text NOT NULL CHECK (status IN ('present', 'absent')),
  UNIQUE (account_id, hostname)
);
INSERT INTO account (id, mysql_username, type, username, password_hash) VALUES
  (1, 's50014', 'tool', 'tools.wm-lol', '*6bb4837eb74329105ee4568dda7dc67ed2ca2ad9'),
  (2, 's50107', 'tool', 'tools.citation-checker', '*531e182e2f72080ab0740fe2f2d689dbe0146e04'),
  (3, 's50112', 'tool', 'tools.commons-map', '*2470c0c06dee42fd1618bb99005adca2ec9d1e19'),
  (4, 'u100101', 'user', 'amara', '*7297c3e22def91303fc493d3fe158ad4967304f6'),
  (5, 'u100102', 'user', 'bogdan', '*aa1420f182e88b9e5f874f6fbe7459291e8f4601'),
  (6, 'p4711', 'paws', '4711', '*667f407de7c6ad07358fa38daed7828a72014b4e');
-- s50112 is new. bogdan's account on s2 is recorded and was removed by hand. 40 was an account once.
INSERT INTO account_host (account_id, hostname, status) VALUES
  (1, 'clouddb1013.eqiad.wmnet:3311', 'present'), (1, 'clouddb1014.eqiad.wmnet:3312', 'present'), (1, '185.15.56.15:3306', 'present'),
  (2, 'clouddb1013.eqiad.wmnet:3311', 'present'), (2, 'clouddb1014.eqiad.wmnet:3312', 'present'), (2, '185.15.56.15:3306', 'present'),
  (3, 'clouddb1013.eqiad.wmnet:3311', 'absent'), (3, 'clouddb1014.eqiad.wmnet:3312', 'absent'), (3, '185.15.56.15:3306', 'absent'),
  (4, 'clouddb1013.eqiad.wmnet:3311', 'present'), (4, 'clouddb1014.eqiad.wmnet:3312', 'present'), (4, '185.15.56.15:3306', 'present'),
  (5, 'clouddb1013.eqiad.wmnet:3311', 'present'), (5, 'clouddb1014.eqiad.wmnet:3312', 'present'), (5, '185.15.56.15:3306', 'present'),
  (6, 'clouddb1013.eqiad.wmnet:3311', 'present'), (6, 'clouddb1014.eqiad.wmnet:3312', 'present'), (6, '185.15.56.15:3306', 'present');
