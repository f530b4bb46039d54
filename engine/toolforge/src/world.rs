//! What there is in a world: people, tools, and what lies in the tools' homes.

use std::collections::BTreeSet;

use crate::names::{FAMILY, FIRST_TOOLS, GIVEN, NASTY_TEXTS, PURPOSES, TOOL_FIRST, TOOL_SECOND, WIKI_NAMES};
use crate::random::Random;

/// The number of the first tool.
const FIRST_TOOL_NUMBER: i64 = 50_000;
/// The number of the first person, unless tools need the room.
const FIRST_PERSON_NUMBER: i64 = 100_000;

/// One Toolforge. The fields are open: a test takes a world and breaks the one thing that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// `tools`; the directory also holds a few tools of `toolsbeta`, as the real one does.
    pub project: String,
    /// What it was made from.
    pub seed: u64,
    /// People, by number. About one in thirty is not a member of the project.
    pub people: Vec<Person>,
    /// The project's tools, by number.
    pub tools: Vec<Tool>,
    /// Tools of the other project; some have the name of one of [`World::tools`].
    pub beta_tools: Vec<Tool>,
    /// Tool groups without a service user, which a half-finished creation leaves behind.
    pub half_made: Vec<String>,
}

/// A person with a developer account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `uid`, the shell name.
    pub shell_name: String,
    /// `cn`, the wiki name.
    pub wiki_name: String,
    /// `uidNumber`.
    pub number: i64,
    /// Whether the project's group has them.
    pub in_project: bool,
}

/// A tool: a service user and, nearly always, a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Without the project: `wm-lol`.
    pub name: String,
    /// `uidNumber` and `gidNumber`.
    pub number: i64,
    /// The group's members; nothing when the tool has no group.
    pub members: Option<Vec<Member>>,
    /// When it was disabled, as `pwdAccountLockedTime` has it.
    pub disabled_at: Option<String>,
    /// What lies in its home; nothing when there is no home.
    pub home: Option<Home>,
}

/// A member of a tool's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A person, by shell name. Gone people stay in groups: nothing cleans up.
    Person(String),
    /// Another tool of the same project, by name.
    Tool(String),
}

/// The files that updatetools reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Home {
    /// `.description`
    pub description: File,
    /// `toolinfo.json`
    pub toolinfo: File,
    /// `public_html/toolinfo.json`, which counts when the other is not there.
    pub public_toolinfo: File,
}

/// What stands at a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum File {
    /// Nothing.
    #[default]
    Missing,
    /// A text file.
    Text(String),
    /// A file that is not UTF-8.
    Bytes(Vec<u8>),
    /// A file that only its owner may read. (Whoever runs as root reads it all the same.)
    Unreadable(String),
    /// A named pipe: whoever opens it to read waits for ever.
    Pipe,
    /// A link to a text file in the same home.
    LinkInside(String),
    /// A link to this absolute path. Following it would publish what the tool's owner cannot read.
    LinkOut(&'static str),
}

impl World {
    /// A world of so many tools and about as many people. The same arguments always give the same world.
    pub fn generate(tools: usize, seed: u64) -> World {
        let mut random = Random::new(seed);
        let people = people(tools, &mut random);
        let names = tool_names(tools, &mut random);
        let mut world = World {
            project: "tools".into(),
            seed,
            people,
            tools: Vec::with_capacity(tools),
            beta_tools: Vec::new(),
            half_made: Vec::new(),
        };
        for (index, name) in names.iter().enumerate() {
            let tool = Tool {
                name: name.clone(),
                number: FIRST_TOOL_NUMBER + index as i64,
                members: members(index, &names, &world.people, &mut random),
                disabled_at: disabled_at(index, &mut random),
                home: home(index, name, &mut random),
            };
            world.tools.push(tool);
        }
        let number_after = FIRST_TOOL_NUMBER + tools as i64;
        let beta = ["fourohfour", "beta-only"].map(String::from).into_iter().chain(names.first().cloned());
        world.beta_tools = beta
            .zip(number_after..)
            .map(|(name, number)| Tool {
                name,
                number,
                members: world.people.first().map(|person| vec![Member::Person(person.shell_name.clone())]),
                disabled_at: None,
                home: None,
            })
            .collect();
        world.half_made = vec!["half-made".into()];
        world
    }

    /// Gives the last tool the number of the first, which a table with a unique `id` refuses. Nothing in a world of
    /// fewer than two tools; otherwise the number.
    pub fn duplicate_number(&mut self) -> Option<i64> {
        let number = self.tools.first()?.number;
        let last = self.tools.iter_mut().skip(1).last()?;
        last.number = number;
        Some(number)
    }

    /// Removes a tool from the directory and its home from the disk's plan, as a deletion does. Groups that have it
    /// as a member keep the member.
    pub fn remove_tool(&mut self, name: &str) -> Option<Tool> {
        let at = self.tools.iter().position(|tool| tool.name == name)?;
        Some(self.tools.remove(at))
    }
}

fn people(tools: usize, random: &mut Random) -> Vec<Person> {
    let count = tools.max(8);
    let first = FIRST_PERSON_NUMBER.max(FIRST_TOOL_NUMBER + tools as i64 + 1_000);
    (0..count)
        .map(|index| {
            let given = random.pick(GIVEN);
            let family = random.pick(FAMILY);
            let shell_name = match index % 4 {
                0 => format!("{}{index}", given.to_lowercase()),
                1 => format!("{}-{}{index}", given.to_lowercase(), family.to_lowercase()),
                2 => format!("{}{index}", family.to_lowercase()),
                _ => format!("{}{}{index}", &given[..1].to_lowercase(), family.to_lowercase()),
            };
            let wiki_name = if index % 11 == 3 {
                format!("{} {index}", WIKI_NAMES[(index / 11) % WIKI_NAMES.len()])
            } else {
                format!("{given} {family} {index}")
            };
            Person { shell_name, wiki_name, number: first + index as i64, in_project: index % 30 != 7 }
        })
        .collect()
}

fn tool_names(count: usize, random: &mut Random) -> Vec<String> {
    let mut names: Vec<String> = FIRST_TOOLS.iter().take(count).map(|name| (*name).to_owned()).collect();
    let mut taken: BTreeSet<String> = names.iter().cloned().collect();
    while names.len() < count {
        let mut name = format!("{}-{}", random.pick(TOOL_FIRST), random.pick(TOOL_SECOND));
        while taken.contains(&name) {
            // A second round of the same words gets a number, as people do it.
            name = format!(
                "{}-{}{}",
                random.pick(TOOL_FIRST),
                random.pick(TOOL_SECOND),
                2 + random.below(count)
            );
        }
        taken.insert(name.clone());
        names.push(name);
    }
    names
}

fn members(index: usize, names: &[String], people: &[Person], random: &mut Random) -> Option<Vec<Member>> {
    let person = |random: &mut Random| Member::Person(random.pick(people).shell_name.clone());
    if index == 5 || (index > 100 && index.is_multiple_of(997)) {
        return None;
    }
    let count = match random.below(100) {
        0..60 => 1,
        60..85 => 2,
        85..97 => 3 + random.below(3),
        _ => 6 + random.below(20),
    };
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..count {
        let member = person(random);
        if !members.contains(&member) {
            members.push(member);
        }
    }
    if index % 16 == 4 {
        let other = &names[random.below(names.len())];
        if *other != names[index] {
            members.push(Member::Tool(other.clone()));
        }
    }
    match index % 40 {
        6 => members.push(Member::Person(format!("gone{index}"))),
        7 => members.push(Member::Tool(format!("gone-tool-{index}"))),
        // The comma is part of the name, so its DN needs an escape.
        8 => members.insert(0, Member::Person(format!("gone, too{index}"))),
        _ => {}
    }
    Some(members)
}

fn disabled_at(index: usize, random: &mut Random) -> Option<String> {
    match index {
        9 => Some("000001010000Z".into()),
        10 => Some("20240612093000Z".into()),
        _ if index > 20 && random.chance(2) => {
            let (month, day, hour) = (1 + random.below(12), 1 + random.below(28), random.below(24));
            Some(format!("2024{month:02}{day:02}{hour:02}0000Z"))
        }
        _ => None,
    }
}

/// The first tools go through every nasty case, later ones meet each now and then.
fn home(index: usize, name: &str, random: &mut Random) -> Option<Home> {
    let purpose = || format!("{}.\n", PURPOSES[index % PURPOSES.len()]);
    let case = if index < 40 { index } else { 40 + random.below(400) };
    let mut home = Home { description: File::Text(purpose()), ..Home::default() };
    match case {
        1 | 260..330 => home.description = File::Missing,
        2 => home.description = File::Bytes(b"caf\xe9 in Latin-1\n".to_vec()),
        3 => home.description = File::Pipe,
        4 => home.description = File::LinkInside(purpose()),
        5 => home.description = File::LinkOut("/etc/passwd"),
        6 => home.description = File::Unreadable("only for the owner\n".into()),
        7 => home.description = File::Text(String::new()),
        11 | 33..190 => home.toolinfo = File::Text(toolinfo(name, index)),
        12 | 190..260 => home.public_toolinfo = File::Text(toolinfo(name, index)),
        13 => {
            home.toolinfo = File::Text(toolinfo(name, index));
            home.public_toolinfo = File::Text("{\"not\": \"this one\"}\n".into());
        }
        14 => home.toolinfo = File::Text(format!("{{\n  \"name\": \"{name}\",\n  \"title\": \"no end")),
        15 => home.toolinfo = File::Bytes(vec![0xff, 0xfe, b'{', 0, b'}', 0]),
        16 => home.toolinfo = File::Unreadable(toolinfo(name, index)),
        17 => home.toolinfo = File::Pipe,
        18 => home.public_toolinfo = File::LinkOut("/etc/passwd"),
        19 => home.public_toolinfo = File::LinkInside(toolinfo(name, index)),
        20 => {
            // An empty file is there, so the other place does not count.
            home.toolinfo = File::Text(String::new());
            home.public_toolinfo = File::Text(toolinfo(name, index));
        }
        // More than a 64 KiB column holds, and than one packet of most protocols.
        21 => home.toolinfo = File::Text(format!("{{\"keywords\": \"{}\"}}\n", "lang ".repeat(20_000))),
        22 | 440 => return None,
        23..33 => home.description = File::Text(NASTY_TEXTS[case - 23].into()),
        330..340 => home.description = File::Text((*random.pick(NASTY_TEXTS)).to_owned()),
        _ => {}
    }
    Some(home)
}

fn toolinfo(name: &str, index: usize) -> String {
    let purpose = PURPOSES[index % PURPOSES.len()];
    format!(
        "{{\n  \"name\": \"{name}\",\n  \"title\": \"{name}\",\n  \"description\": \"{purpose}\",\n  \
         \"url\": \"https://{name}.toolforge.org/\",\n  \"keywords\": \"wiki, {index}\"\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_arguments_give_the_same_world() {
        assert_eq!(World::generate(300, 7), World::generate(300, 7));
        assert_ne!(World::generate(300, 7), World::generate(300, 8));
    }

    #[test]
    fn names_and_numbers_are_unique_at_every_size() {
        for tools in [0, 1, 12, 400, 12_000] {
            let world = World::generate(tools, 3);
            assert_eq!(world.tools.len(), tools);
            let unique = |texts: Vec<String>| {
                let count = texts.len();
                assert_eq!(texts.into_iter().collect::<BTreeSet<_>>().len(), count, "{tools} tools");
            };
            unique(world.tools.iter().map(|tool| tool.name.clone()).collect());
            unique(world.people.iter().map(|person| person.shell_name.clone()).collect());
            // As the crudest collation compares them: letters and digits of ASCII, without case.
            unique(
                world
                    .people
                    .iter()
                    .map(|person| {
                        person
                            .wiki_name
                            .chars()
                            .filter(char::is_ascii_alphanumeric)
                            .collect::<String>()
                            .to_lowercase()
                    })
                    .collect(),
            );
            let numbers = world.tools.iter().chain(&world.beta_tools).map(|tool| tool.number);
            unique(
                numbers
                    .chain(world.people.iter().map(|person| person.number))
                    .map(|n| n.to_string())
                    .collect(),
            );
            assert!(
                world.tools.iter().all(|tool| (1..=32).contains(&tool.name.len())),
                "names fit Striker's rule"
            );
            assert!(world.people.iter().all(|person| person.wiki_name.chars().count() <= 64));
        }
    }

    #[test]
    fn a_small_world_has_every_nasty_detail() {
        let world = World::generate(60, 1);
        let has = |what: &str, found: bool| assert!(found, "no {what}");
        has("name of 1 character", world.tools.iter().any(|tool| tool.name.len() == 1));
        has("name of 32 characters", world.tools.iter().any(|tool| tool.name.len() == 32));
        has("name with _", world.tools.iter().any(|tool| tool.name.contains('_')));
        has("tool without group", world.tools.iter().any(|tool| tool.members.is_none()));
        has("tool without home", world.tools.iter().any(|tool| tool.home.is_none()));
        has("disabled tool", world.tools.iter().any(|tool| tool.disabled_at.is_some()));
        let members = || world.tools.iter().filter_map(|tool| tool.members.as_ref()).flatten();
        has("gone person", members().any(|m| matches!(m, Member::Person(name) if name.starts_with("gone"))));
        has("gone tool", members().any(|m| matches!(m, Member::Tool(name) if name.starts_with("gone"))));
        has(
            "nested tool",
            members().any(|m| matches!(m, Member::Tool(name) if world.tools.iter().any(|t| t.name == *name))),
        );
        let files = || {
            world
                .tools
                .iter()
                .filter_map(|tool| tool.home.as_ref())
                .flat_map(|home| [&home.description, &home.toolinfo, &home.public_toolinfo])
        };
        has("pipe", files().any(|file| *file == File::Pipe));
        has("link out", files().any(|file| matches!(file, File::LinkOut(_))));
        has("link inside", files().any(|file| matches!(file, File::LinkInside(_))));
        has("unreadable file", files().any(|file| matches!(file, File::Unreadable(_))));
        has("file that is not UTF-8", files().any(|file| matches!(file, File::Bytes(_))));
        has(
            "4-byte character in a name",
            world.people.iter().any(|p| p.wiki_name.chars().any(|c| c.len_utf8() == 4)),
        );
        has("person outside the project", world.people.iter().any(|person| !person.in_project));
    }
}
