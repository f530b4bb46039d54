//! A real OpenLDAP server takes the worlds, and answers the questions that updatetools asks as the oracle expects.

use farrier_testkit::slapd::{Options, Slapd};
use farrier_toolforge::{World, oracle};

/// `slapd` itself says what the LDIF holds: the attributes of every match, as the server writes them.
fn count(directory: &Slapd, filter: &str) -> usize {
    directory.search(filter, &["dn"]).lines().filter(|line| line.starts_with("dn:")).count()
}

#[test]
fn a_directory_holds_the_world_with_every_nasty_detail() {
    let world = World::generate(120, 11);
    let directory = Slapd::start(Options { entries: world.ldif_to_add(), ..Options::default() });
    assert_eq!(count(&directory, "(&(objectClass=posixAccount)(cn=tools.*))"), world.tools.len());
    let with_group = world.tools.iter().filter(|tool| tool.members.is_some()).count();
    assert_eq!(
        count(&directory, "(&(objectClass=posixGroup)(cn=tools.*))"),
        with_group + world.half_made.len()
    );
    let in_project = world.people.iter().filter(|person| person.in_project).count();
    let members = "(&(objectClass=posixAccount)(memberOf=cn=project-tools,ou=groups,dc=wikimedia,dc=org))";
    assert_eq!(count(&directory, members), in_project);
    let disabled = world.tools.iter().filter(|tool| tool.disabled_at.is_some()).count();
    assert_eq!(count(&directory, "(pwdAccountLockedTime=*)"), disabled);
    assert_eq!(
        count(&directory, "(pwdPolicySubentry=cn=disabled,ou=ppolicies,dc=wikimedia,dc=org)"),
        disabled
    );
}

#[test]
fn the_oracle_reads_the_same_from_the_servers_dump_as_from_the_generators_text() {
    let world = World::generate(120, 12);
    let homes = tempfile::tempdir().unwrap();
    world.write_homes(homes.path()).unwrap();
    let directory = Slapd::start(Options { entries: world.ldif_to_add(), ..Options::default() });
    let of = |ldif: &str| oracle::expected(ldif, homes.path(), &world.project, 1).tables().unwrap();
    assert_eq!(of(&directory.dump()), of(&world.ldif()));
}
