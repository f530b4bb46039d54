-- The tables of the demo as a run some days ago left them: two tools and a user are missing, three tools and a user
-- have old content, and the tool `anagram-lab` has been deleted since. Read once, when the database is made.
CREATE TABLE IF NOT EXISTS tools (
  name text NOT NULL PRIMARY KEY,
  id integer NOT NULL UNIQUE,
  home text NOT NULL,
  description text,
  toolinfo text,
  maintainers text,
  updated integer NOT NULL
);
CREATE TABLE IF NOT EXISTS users (
  name text NOT NULL PRIMARY KEY,
  id integer NOT NULL UNIQUE,
  wikitech text NOT NULL UNIQUE,
  home text NOT NULL
);
INSERT INTO tools (name, id, home, description, toolinfo, maintainers, updated) VALUES
  ('admin', 50001, '/data/project/admin', 'Pages about Toolforge itself, and the checks behind them.', '', 'amara kofi', 1795000000),
  ('anagram-lab', 50131, '/data/project/anagram-lab', 'Anagrams of article titles.', '', 'kofi', 1795000000),
  ('citation-checker', 50107, '/data/project/citation-checker', 'Finds citations whose links are dead.', '{   "name": "citation-checker",   "title": "Citation checker",   "description": "Finds citations that went stale",   "url": "https://citation-checker.toolforge.org/",   "keywords": "citation, reference, quality",   "author": "see maintainers" }', 'clara-w noor', 1795000000),
  ('commons-map', 50112, '/data/project/commons-map', 'Photos of Wikimedia Commons on a map, by date and by license.', '{   "name": "commons-map",   "title": "Commons map",   "description": "Photos on a map",   "url": "https://commons-map.toolforge.org/",   "keywords": "commons, map, photo",   "author": "see maintainers" }', 'deniz', 1795000000),
  ('dead-link-patrol', 50119, '/data/project/dead-link-patrol', 'Looks for dead links and proposes archived copies.', '', 'farah tools.citation-checker', 1795000000),
  ('edit-pulse', 50126, '/data/project/edit-pulse', 'Edits per minute on all wikis, as a picture that moves. 📈', '{   "name": "edit-pulse",   "title": "Edit pulse",   "description": "Edits per minute on all wikis",   "url": "https://edit-pulse.toolforge.org/",   "keywords": "statistics, live",   "author": "see maintainers" }', 'hanna-l', 1795000000),
  ('photo-radar', 50133, '/data/project/photo-radar', 'Places near you without a photo.', '', 'kofi', 1795000000),
  ('ru_monuments', 50023, '/data/project/ru_monuments', '', '', 'bogdan eero gone-in-2019', 1795000000),
  ('stub-sorter', 50140, '/data/project/stub-sorter', 'Suggests a category for every stub.', '{   "name": "stub-sorter",   "title": "Stub sorter",', 'eero', 1795000000),
  ('template-atlas', 50148, '/data/project/template-atlas', '', '', 'noor hanna-l', 1795000000),
  ('wm-lol', 50014, '/data/project/wm-lol', 'Short links to Wikimedia pages. https://wm-lol.toolforge.org/ is a page of help.', '', 'bogdan', 1795000000);
INSERT INTO users (name, id, wikitech, home) VALUES
  ('amara', 100101, 'Amara Okafor', '/home/amara'),
  ('bogdan', 100102, 'Bogdan Petrov', '/home/bogdan'),
  ('clara-w', 100103, 'Clara Weiss', '/home/clara-w'),
  ('deniz', 100104, 'Deniz Yılmaz', '/home/deniz'),
  ('eero', 100105, 'Eero', '/home/eero'),
  ('farah', 100106, 'Farah Ibrahim', '/home/farah'),
  ('hanna-l', 100107, 'Hanna Lindqvist 🦊', '/home/hanna-l'),
  ('kofi', 100108, 'Kofi Mbeki', '/home/kofi'),
  ('mai', 100109, 'Mai Tanaka', '/home/mai'),
  ('noor', 100110, 'Noor Abara', '/home/noor');
