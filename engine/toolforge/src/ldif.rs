//! The directory as LDIF (RFC 2849), in an order in which every parent comes before its children.
//!
//! `memberOf` is written out, since no overlay fills it in while `slapadd` loads.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::world::{Member, Tool, World};

/// The suffix of every Toolforge directory.
pub(crate) const SUFFIX: &str = "dc=wikimedia,dc=org";
/// Lines longer than this are folded.
const LINE: usize = 76;

impl World {
    /// The whole directory as LDIF, loadable with `slapadd -q` where `posixGroup` is auxiliary and the overlays
    /// `memberof` and `ppolicy` are there.
    pub fn ldif(&self) -> String {
        let mut out = Ldif::default();
        tree(&mut out);
        self.entries(&mut out, true);
        out.text
    }

    /// The same without what every test directory begins with (the tree down to its units, the policy, the reader)
    /// and without `memberOf`, which such a directory works out by itself.
    pub fn ldif_to_add(&self) -> String {
        let mut out = Ldif::default();
        self.entries(&mut out, false);
        out.text
    }

    fn entries(&self, out: &mut Ldif, member_of: bool) {
        self.projects(out);
        self.people_entries(out, member_of);
        self.groups(out);
        for (project, tools) in [(self.project.as_str(), &self.tools), ("toolsbeta", &self.beta_tools)] {
            for tool in tools {
                tool_entries(out, project, tool);
            }
        }
        for (at, name) in self.half_made.iter().enumerate() {
            let number = (90_000 + at).to_string();
            let member = person_dn(self.people.first().map_or("nobody", |person| &person.shell_name));
            tool_group(out, &format!("{}.{name}", self.project), &number, &[member]);
        }
    }

    fn projects(&self, out: &mut Ldif) {
        for project in [self.project.as_str(), "toolsbeta"] {
            let dn = format!("cn={project},ou=projects,{SUFFIX}");
            let member = person_dn(self.people.first().map_or("nobody", |person| &person.shell_name));
            out.entry(
                &dn,
                &[
                    ("objectClass", "top"),
                    ("objectClass", "groupOfNames"),
                    ("objectClass", "extensibleObject"),
                    ("cn", project),
                    ("member", &member),
                ],
            );
            for unit in ["groups", "people", "sudoers"] {
                out.unit(unit, &dn);
            }
            for (name, run_as) in [("default-sudo", None), ("default-sudo-as", Some("root"))] {
                let group = format!("%project-{project}");
                let mut attributes = vec![
                    ("objectClass", "top"),
                    ("objectClass", "sudoRole"),
                    ("cn", name),
                    ("sudoUser", group.as_str()),
                    ("sudoHost", "ALL"),
                    ("sudoCommand", "ALL"),
                    ("sudoOption", "!authenticate"),
                ];
                attributes.extend(run_as.map(|user| ("sudoRunAsUser", user)));
                out.entry(&format!("cn={name},ou=sudoers,{dn}"), &attributes);
            }
        }
    }

    fn people_entries(&self, out: &mut Ldif, member_of: bool) {
        let groups = if member_of { self.groups_of_members() } else { BTreeMap::new() };
        for person in &self.people {
            let number = person.number.to_string();
            let home = format!("/home/{}", person.shell_name);
            let mail = format!("{}@example.org", person.shell_name);
            let dn = person_dn(&person.shell_name);
            let mut attributes = vec![
                ("objectClass", "top"),
                ("objectClass", "person"),
                ("objectClass", "inetOrgPerson"),
                ("objectClass", "posixAccount"),
                ("uid", person.shell_name.as_str()),
                ("cn", person.wiki_name.as_str()),
                ("sn", person.wiki_name.as_str()),
                ("mail", mail.as_str()),
                ("uidNumber", number.as_str()),
                ("gidNumber", "500"),
                ("homeDirectory", home.as_str()),
                ("loginShell", "/bin/bash"),
            ];
            attributes
                .extend(groups.get(&dn).into_iter().flatten().map(|group| ("memberOf", group.as_str())));
            out.entry(&dn, &attributes);
        }
    }

    /// Every `groupOfNames` that has an existing person as a member, by the person's DN.
    fn groups_of_members(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut add = |person: String, group: String| {
            groups.entry(person).or_default().insert(group);
        };
        for person in self.people.iter().filter(|person| person.in_project) {
            add(person_dn(&person.shell_name), project_group(&self.project));
        }
        if let Some(first) = self.people.first() {
            let dn = person_dn(&first.shell_name);
            for project in [self.project.as_str(), "toolsbeta"] {
                add(dn.clone(), format!("cn={project},ou=projects,{SUFFIX}"));
            }
            add(dn.clone(), project_group("toolsbeta"));
            for name in &self.half_made {
                add(dn.clone(), group_dn(&format!("{}.{name}", self.project)));
            }
        }
        for (project, tools) in [(self.project.as_str(), &self.tools), ("toolsbeta", &self.beta_tools)] {
            for tool in tools {
                for member in tool.members.iter().flatten() {
                    if let Member::Person(name) = member {
                        add(person_dn(name), group_dn(&format!("{project}.{}", tool.name)));
                    }
                }
            }
        }
        groups
    }

    fn groups(&self, out: &mut Ldif) {
        let everyone = self.people.iter().filter(|person| person.in_project);
        let everyone: Vec<String> = everyone.map(|person| person_dn(&person.shell_name)).collect();
        let first: Vec<String> =
            self.people.iter().take(1).map(|person| person_dn(&person.shell_name)).collect();
        for (project, number, members) in
            [(self.project.as_str(), "40001", &everyone), ("toolsbeta", "40002", &first)]
        {
            let name = format!("project-{project}");
            let mut attributes = vec![
                ("objectClass", "top"),
                ("objectClass", "groupOfNames"),
                ("objectClass", "posixGroup"),
                ("cn", name.as_str()),
                ("gidNumber", number),
            ];
            attributes.extend(members.iter().map(|member| ("member", member.as_str())));
            out.entry(&project_group(project), &attributes);
        }
    }
}

/// The tree down to its units, the policy, and the account that reads.
fn tree(out: &mut Ldif) {
    out.entry(
        SUFFIX,
        &[
            ("objectClass", "top"),
            ("objectClass", "dcObject"),
            ("objectClass", "organization"),
            ("dc", "wikimedia"),
            ("o", "wikimedia"),
        ],
    );
    for unit in ["profile", "people", "servicegroups", "groups", "ppolicies", "projects"] {
        out.unit(unit, SUFFIX);
    }
    out.unit("people", &format!("ou=servicegroups,{SUFFIX}"));
    out.entry(
        &format!("cn=proxyagent,ou=profile,{SUFFIX}"),
        &[("objectClass", "top"), ("objectClass", "organizationalRole"), ("cn", "proxyagent")],
    );
    out.entry(
        &disabled_policy(),
        &[
            ("objectClass", "top"),
            ("objectClass", "organizationalRole"),
            ("objectClass", "pwdPolicy"),
            ("cn", "disabled"),
            ("pwdAttribute", "userPassword"),
            ("pwdLockout", "TRUE"),
            ("pwdMaxAge", "1"),
        ],
    );
}

fn tool_entries(out: &mut Ldif, project: &str, tool: &Tool) {
    let account = format!("{project}.{}", tool.name);
    let number = tool.number.to_string();
    let home = format!("/data/project/{}", tool.name);
    if let Some(members) = &tool.members {
        let members: Vec<String> = members
            .iter()
            .map(|member| match member {
                Member::Person(name) => person_dn(name),
                Member::Tool(name) => service_user_dn(&format!("{project}.{name}")),
            })
            .collect();
        tool_group(out, &account, &number, &members);
    }
    let policy = disabled_policy();
    let mut attributes = vec![
        ("objectClass", "top"),
        ("objectClass", "person"),
        ("objectClass", "shadowAccount"),
        ("objectClass", "posixAccount"),
        ("uid", account.as_str()),
        ("cn", account.as_str()),
        ("sn", account.as_str()),
        ("uidNumber", number.as_str()),
        ("gidNumber", number.as_str()),
        ("homeDirectory", home.as_str()),
        ("loginShell", "/bin/bash"),
    ];
    if let Some(time) = &tool.disabled_at {
        attributes.push(("pwdAccountLockedTime", time));
        attributes.push(("pwdPolicySubentry", &policy));
    }
    out.entry(&service_user_dn(&account), &attributes);
    let (rule, group) = (format!("runas-{account}"), format!("%{account}"));
    out.entry(
        &format!("cn={rule},ou=sudoers,cn={project},ou=projects,{SUFFIX}"),
        &[
            ("objectClass", "top"),
            ("objectClass", "sudoRole"),
            ("cn", &rule),
            ("sudoUser", &group),
            ("sudoHost", "ALL"),
            ("sudoCommand", "ALL"),
            ("sudoOption", "!authenticate"),
            ("sudoRunAsUser", &account),
        ],
    );
}

fn tool_group(out: &mut Ldif, account: &str, number: &str, members: &[String]) {
    let mut attributes = vec![
        ("objectClass", "top"),
        ("objectClass", "groupOfNames"),
        ("objectClass", "posixGroup"),
        ("cn", account),
        ("gidNumber", number),
    ];
    attributes.extend(members.iter().map(|member| ("member", member.as_str())));
    out.entry(&group_dn(account), &attributes);
}

fn person_dn(shell_name: &str) -> String {
    format!("uid={},ou=people,{SUFFIX}", shell_name.replace(',', "\\2C"))
}

fn service_user_dn(account: &str) -> String {
    format!("uid={account},ou=people,ou=servicegroups,{SUFFIX}")
}

fn group_dn(account: &str) -> String {
    format!("cn={account},ou=servicegroups,{SUFFIX}")
}

fn project_group(project: &str) -> String {
    format!("cn=project-{project},ou=groups,{SUFFIX}")
}

fn disabled_policy() -> String {
    format!("cn=disabled,ou=ppolicies,{SUFFIX}")
}

/// LDIF text in the making.
#[derive(Default)]
struct Ldif {
    text: String,
}

impl Ldif {
    fn unit(&mut self, name: &str, below: &str) {
        self.entry(
            &format!("ou={name},{below}"),
            &[("objectClass", "top"), ("objectClass", "organizationalUnit"), ("ou", name)],
        );
    }

    fn entry(&mut self, dn: &str, attributes: &[(&str, &str)]) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line("dn", dn);
        for (name, value) in attributes {
            self.line(name, value);
        }
    }

    fn line(&mut self, name: &str, value: &str) {
        let first_is_plain = value.bytes().next().is_none_or(|byte| !matches!(byte, b' ' | b':' | b'<'));
        let plain =
            first_is_plain && !value.ends_with(' ') && value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        let line =
            if plain { format!("{name}: {value}") } else { format!("{name}:: {}", STANDARD.encode(value)) };
        // Both forms are ASCII, so any byte is a good place to fold.
        let mut rest = line.as_str();
        let mut width = LINE;
        while rest.len() > width {
            let (head, tail) = rest.split_at(width);
            self.text.push_str(head);
            self.text.push_str("\n ");
            rest = tail;
            width = LINE - 1;
        }
        self.text.push_str(rest);
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_and_unsafe_values_are_base64() {
        for (value, expected) in [
            ("plain", "cn: plain\n"),
            ("", "cn: \n"),
            (" leading", "cn:: IGxlYWRpbmc=\n"),
            ("Zoë", "cn:: Wm/Dqw==\n"),
            (":", "cn:: Og==\n"),
        ] {
            let mut out = Ldif::default();
            out.line("cn", value);
            assert_eq!(out.text, expected, "{value:?}");
        }
        let mut out = Ldif::default();
        out.line("description", &"x".repeat(200));
        assert!(out.text.lines().all(|line| line.len() <= LINE));
        assert_eq!(out.text.replace("\n ", ""), format!("description: {}\n", "x".repeat(200)));
    }

    #[test]
    fn parents_come_before_children_and_no_entry_twice() {
        let ldif = World::generate(50, 2).ldif();
        let unfolded = ldif.replace("\n ", "");
        let mut seen = BTreeSet::new();
        for dn in unfolded.lines().filter_map(|line| line.strip_prefix("dn: ")) {
            if let Some((_, parent)) = dn.split_once(',')
                && dn != SUFFIX
            {
                assert!(seen.contains(parent), "{dn} comes before its parent");
            }
            assert!(seen.insert(dn.to_owned()), "{dn} twice");
        }
        assert!(seen.len() > 150);
    }
}
