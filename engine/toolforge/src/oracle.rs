//! What the tables must contain, worked out from the LDIF text and the files on disk in the plainest way.
//!
//! It shares no code with Farrier's plugins: it reads LDIF and base64 by itself, so a mistake there cannot hide here.
//!
//! The rules, one place for all of them:
//!
//! - A tool is a `posixAccount` below `ou=people,ou=servicegroups` whose `cn` begins with the project and a dot. Its
//!   row's name is the rest. A tool without a group has no maintainers; a group without a service user is no tool.
//! - Its maintainers are the first RDN value of each `member`, in the directory's order: nested tools appear as
//!   `tools.other`, and members that are gone still appear.
//! - A user is a `posixAccount` below `ou=people` that is a `memberOf` the project's group.
//! - Texts are the lines of the file with a space between. `toolinfo.json` counts before `public_html/toolinfo.json`,
//!   also when it is empty. What cannot be read as UTF-8 text from a regular file inside the home counts as missing,
//!   and missing is the empty text. Broken JSON is text like any other.
//! - No tools, no users, or two rows with one name, number or wiki name: that table is left as it is. The other table
//!   does not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::ldif::SUFFIX;
use crate::tables::{Tables, ToolRow, UserRow};

/// Why a table is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The directory named nobody.
    #[error("the directory has no {table}")]
    Empty {
        /// `tools` or `users`.
        table: &'static str,
    },
    /// A unique column would hold a value twice.
    #[error("`{value}` would stand twice in `{table}.{column}`")]
    Duplicate {
        /// `tools` or `users`.
        table: &'static str,
        /// The unique column.
        column: &'static str,
        /// The value.
        value: String,
    },
}

/// What a run leaves in each table, or why it leaves that table alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Rows of `tools`, by name.
    pub tools: Result<Vec<ToolRow>, Refused>,
    /// Rows of `users`, by name.
    pub users: Result<Vec<UserRow>, Refused>,
}

impl Expected {
    /// Both tables, when neither is refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn tables(self) -> Result<Tables, Refused> {
        Ok(Tables { tools: self.tools?, users: self.users? })
    }
}

/// The tables after a run at `now` (unix seconds) of a directory in LDIF and homes below `homes`, as if every row
/// were written: compare with [`ToolRow::same_content`] where a run writes only differences.
pub fn expected(ldif: &str, homes: &Path, project: &str, now: i64) -> Expected {
    let entries = parse(ldif);
    Expected { tools: tools(&entries, homes, project, now), users: users(&entries, project) }
}

fn tools(entries: &[Entry], homes: &Path, project: &str, now: i64) -> Result<Vec<ToolRow>, Refused> {
    let prefix = format!("{project}.");
    let mut maintainers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for group in entries.iter().filter(|entry| entry.below("ou=servicegroups") && entry.is_a("posixGroup")) {
        let names = maintainers.entry(group.one("cn")).or_default();
        names.extend(group.all("member").iter().map(|dn| first_value(dn)));
    }
    let mut rows = Vec::new();
    for account in
        entries.iter().filter(|entry| entry.below("ou=people,ou=servicegroups") && entry.is_a("posixAccount"))
    {
        let cn = account.one("cn");
        let Some(name) = cn.strip_prefix(&prefix) else { continue };
        let home = account.one("homeDirectory");
        let folder = homes.join(home.rsplit('/').next().unwrap_or_default());
        rows.push(ToolRow {
            name: name.to_owned(),
            id: account.one("uidNumber").parse().unwrap_or(-1),
            home: home.to_owned(),
            description: Some(first_text(&folder, &[".description"])),
            toolinfo: Some(first_text(&folder, &["toolinfo.json", "public_html/toolinfo.json"])),
            maintainers: Some(maintainers.get(cn).map(|names| names.join(" ")).unwrap_or_default()),
            updated: now,
        });
    }
    if rows.is_empty() {
        return Err(Refused::Empty { table: "tools" });
    }
    unique("tools", "name", rows.iter().map(|row| row.name.clone()))?;
    unique("tools", "id", rows.iter().map(|row| row.id.to_string()))?;
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(rows)
}

fn users(entries: &[Entry], project: &str) -> Result<Vec<UserRow>, Refused> {
    let group = format!("cn=project-{project},ou=groups,{SUFFIX}");
    let mut rows: Vec<UserRow> = entries
        .iter()
        .filter(|entry| entry.below("ou=people") && entry.is_a("posixAccount"))
        .filter(|entry| entry.all("memberof").iter().any(|dn| dn.eq_ignore_ascii_case(&group)))
        .map(|person| UserRow {
            name: person.one("uid").to_owned(),
            id: person.one("uidNumber").parse().unwrap_or(-1),
            wikitech: person.one("cn").to_owned(),
            home: person.one("homeDirectory").to_owned(),
        })
        .collect();
    if rows.is_empty() {
        return Err(Refused::Empty { table: "users" });
    }
    unique("users", "name", rows.iter().map(|row| row.name.clone()))?;
    unique("users", "id", rows.iter().map(|row| row.id.to_string()))?;
    unique("users", "wikitech", rows.iter().map(|row| row.wikitech.clone()))?;
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(rows)
}

/// Texts that differ in case alone count as the same, as the real tables' collation has it.
fn unique(
    table: &'static str,
    column: &'static str,
    values: impl Iterator<Item = String>,
) -> Result<(), Refused> {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value.to_lowercase()) {
            return Err(Refused::Duplicate { table, column, value });
        }
    }
    Ok(())
}

fn first_text(home: &Path, names: &[&str]) -> String {
    let text = names.iter().find_map(|name| {
        let real_home = home.canonicalize().ok()?;
        let real = home.join(name).canonicalize().ok()?;
        if !real.starts_with(real_home) || !real.is_file() {
            return None;
        }
        String::from_utf8(fs::read(real).ok()?).ok()
    });
    text.unwrap_or_default().lines().collect::<Vec<_>>().join(" ")
}

/// The value before the first comma that is not escaped, without its escapes.
fn first_value(dn: &str) -> String {
    let (_, rest) = dn.split_once('=').unwrap_or(("", dn));
    let mut value = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => break,
            '\\' => {
                let pair: String = chars.by_ref().take(2).collect();
                match u8::from_str_radix(&pair, 16) {
                    Ok(byte) => value.push(char::from(byte)),
                    Err(_) => value.push_str(&pair),
                }
            }
            c => value.push(c),
        }
    }
    value
}

/// An entry: its DN and its attributes under lower-case names.
struct Entry {
    dn: String,
    attributes: BTreeMap<String, Vec<String>>,
}

impl Entry {
    fn below(&self, base: &str) -> bool {
        self.dn.ends_with(&format!(",{base},{SUFFIX}"))
    }
    fn is_a(&self, class: &str) -> bool {
        self.all("objectclass").iter().any(|value| value.eq_ignore_ascii_case(class))
    }
    fn all(&self, name: &str) -> &[String] {
        self.attributes.get(name).map_or(&[], Vec::as_slice)
    }
    fn one(&self, name: &str) -> &str {
        self.all(&name.to_lowercase()).first().map_or("", String::as_str)
    }
}

fn parse(ldif: &str) -> Vec<Entry> {
    let unfolded = ldif.replace("\r\n", "\n").replace("\n ", "");
    let mut entries = Vec::new();
    for block in unfolded.split("\n\n") {
        let mut entry = Entry { dn: String::new(), attributes: BTreeMap::new() };
        for line in block.lines().filter(|line| !line.starts_with('#') && !line.starts_with("version:")) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = match value.strip_prefix(':') {
                Some(encoded) => from_base64(encoded.trim()),
                None => value.trim_start_matches(' ').to_owned(),
            };
            if name == "dn" {
                entry.dn = value;
            } else {
                entry.attributes.entry(name.to_lowercase()).or_default().push(value);
            }
        }
        if !entry.dn.is_empty() {
            entries.push(entry);
        }
    }
    entries
}

fn from_base64(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.bytes().filter_map(|byte| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }) {
        bits = (bits << 6) | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{File, Member, World};

    fn look(world: &World) -> Expected {
        let dir = tempfile::tempdir().unwrap();
        world.write_homes(dir.path()).unwrap();
        expected(&world.ldif(), dir.path(), &world.project, 1_700_000_000)
    }

    /// Written by hand, rule by rule: the oracle needs an oracle too.
    const SMALL: &str = "\
version: 1
# a comment
dn: uid=tools.a,ou=people,ou=servicegroups,dc=wikimedia,dc=org
objectClass: posixAccount
cn: tools.a
uidNumber: 50000
homeDirectory: /data/project/a

dn: uid=toolsbeta.a,ou=people,ou=servicegroups,dc=wikimedia,dc=org
objectClass: posixAccount
cn: toolsbeta.a
uidNumber: 50001
homeDirectory: /data/project/a

dn: cn=tools.a,ou=servicegroups,dc=wikimedia,dc=org
objectClass: groupOfNames
objectClass: posixGroup
cn: tools.a
member: uid=gone\\2C too,ou=people,dc=wikimedia,dc=org
member: uid=zoe,ou=people,
 dc=wikimedia,dc=org
member: uid=tools.b,ou=people,ou=servicegroups,dc=wikimedia,dc=org

dn: uid=zoe,ou=people,dc=wikimedia,dc=org
objectClass: posixAccount
uid: zoe
cn:: Wm/DqyDwn6aK
uidNumber: 100000
homeDirectory: /home/zoe
memberOf: cn=Project-Tools,ou=groups,dc=wikimedia,dc=org

dn: uid=other,ou=people,dc=wikimedia,dc=org
objectClass: posixAccount
uid: other
cn: Other
uidNumber: 100001
homeDirectory: /home/other
";

    #[test]
    fn a_world_written_by_hand_gives_the_rows_written_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/public_html")).unwrap();
        fs::write(dir.path().join("a/.description"), "one\r\ntwo\n\nfour").unwrap();
        fs::write(dir.path().join("a/public_html/toolinfo.json"), "{\"broken\":\n").unwrap();
        let found = expected(SMALL, dir.path(), "tools", 5).tables().unwrap();
        let tool = ToolRow {
            name: "a".into(),
            id: 50_000,
            home: "/data/project/a".into(),
            description: Some("one two  four".into()),
            toolinfo: Some("{\"broken\":".into()),
            maintainers: Some("gone, too zoe tools.b".into()),
            updated: 5,
        };
        let user =
            UserRow {
                name: "zoe".into(), id: 100_000, wikitech: "Zoë 🦊".into(), home: "/home/zoe".into()
            };
        assert_eq!(found, Tables { tools: vec![tool], users: vec![user] });
    }

    #[test]
    fn the_first_place_counts_when_it_can_be_read_and_links_out_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("t");
        fs::create_dir_all(home.join("public_html")).unwrap();
        let text = || first_text(&home, &["toolinfo.json", "public_html/toolinfo.json"]);
        assert_eq!(text(), "");
        fs::write(home.join("public_html/toolinfo.json"), "second").unwrap();
        assert_eq!(text(), "second");
        std::os::unix::fs::symlink("/etc/passwd", home.join("toolinfo.json")).unwrap();
        assert_eq!(text(), "second");
        fs::remove_file(home.join("toolinfo.json")).unwrap();
        fs::write(home.join("toolinfo.json"), "").unwrap();
        assert_eq!(text(), "", "an empty file is there all the same");
    }

    #[test]
    fn generated_worlds_come_out_as_they_were_meant() {
        let world = World::generate(120, 9);
        let tables = look(&world).tables().unwrap();
        assert_eq!(tables.tools.len(), world.tools.len());
        assert_eq!(tables.users.len(), world.people.iter().filter(|person| person.in_project).count());
        for tool in &world.tools {
            let row = tables.tools.iter().find(|row| row.name == tool.name).unwrap();
            let names: Vec<String> = tool
                .members
                .iter()
                .flatten()
                .map(|member| match member {
                    Member::Person(name) => name.clone(),
                    Member::Tool(name) => format!("tools.{name}"),
                })
                .collect();
            assert_eq!(row.maintainers.as_deref(), Some(names.join(" ").as_str()));
            let description = tool.home.as_ref().map_or(&File::Missing, |home| &home.description);
            match description {
                File::Text(text) | File::LinkInside(text) => {
                    assert_eq!(
                        row.description.as_deref(),
                        Some(text.lines().collect::<Vec<_>>().join(" ").as_str())
                    );
                }
                File::Unreadable(_) => {}
                _ => assert_eq!(row.description.as_deref(), Some(""), "{}", tool.name),
            }
        }
        for person in world.people.iter().filter(|person| person.in_project) {
            assert!(tables.users.iter().any(|row| row.wikitech == person.wiki_name), "{}", person.wiki_name);
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused_for_that_table_alone() {
        let mut world = World::generate(20, 1);
        let number = world.duplicate_number().unwrap();
        let found = look(&world);
        assert_eq!(
            found.tools,
            Err(Refused::Duplicate { table: "tools", column: "id", value: number.to_string() })
        );
        assert!(found.users.is_ok());

        let found = look(&World::generate(0, 1));
        assert_eq!(found.tools, Err(Refused::Empty { table: "tools" }));
        assert!(found.users.is_ok());

        let mut world = World::generate(3, 1);
        world.people.iter_mut().for_each(|person| person.in_project = false);
        assert_eq!(look(&world).users, Err(Refused::Empty { table: "users" }));
        world.people.iter_mut().for_each(|person| person.in_project = true);
        world.people[1].wiki_name = world.people[0].wiki_name.to_uppercase();
        assert!(matches!(look(&world).users, Err(Refused::Duplicate { column: "wikitech", .. })));
    }

    #[test]
    fn a_removed_tool_is_gone_and_stays_a_member_of_others() {
        let mut world = World::generate(30, 1);
        let name = world.tools[2].name.clone();
        world.tools[0].members = Some(vec![Member::Tool(name.clone())]);
        world.remove_tool(&name).unwrap();
        let rows = look(&world).tools.unwrap();
        assert!(rows.iter().all(|row| row.name != name));
        let first = rows.iter().find(|row| row.name == world.tools[0].name).unwrap();
        assert_eq!(first.maintainers, Some(format!("tools.{name}")));
    }
}
