//! `maintain-dbusers-delete` of each type.

use farrier_testkit::mariadb::Database;

use crate::populate::is_whole;
use crate::site::{OWNERS, Owner, Toolforge, accounts_of};

const GONE: [&str; 3] = ["p4711", "s50107", "u100102"];

fn is_nowhere(site: &Toolforge, owner: Owner) {
    let there = |server: &Database| accounts_of(server, &format!("^{}$", owner.account));
    for server in [&site.servers.accounts, &site.servers.s1, &site.servers.s2] {
        assert_eq!(there(server), [""; 0]);
    }
    assert!(!site.path(owner).exists(), "{owner:?}");
    assert_eq!(site.row(owner), "");
    if let Some(tool) = owner.tool() {
        assert_eq!(site.api.variables(tool).into_keys().collect::<Vec<_>>(), ["MINE"], "{owner:?}");
    }
}

#[test]
fn an_account_of_each_type_goes_and_comes_back_with_another_password() {
    let site = Toolforge::start(false);
    site.run("maintain-dbusers-populate", &[]).expect(0);
    let hosts = || site.servers.accounts.exec("SELECT COUNT(*) FROM account_host").trim().to_owned();
    assert_eq!(hosts(), "27");
    let (doomed, others): (Vec<Owner>, Vec<Owner>) =
        OWNERS.into_iter().partition(|owner| GONE.contains(&owner.account));
    let passwords: Vec<String> = doomed.iter().map(|owner| site.password(*owner)).collect();

    // What a tool has set itself is its own.
    site.api.change("citation-checker", "MINE", Some("stays"));
    let asked = site.api.written();

    // While a server is away, the account stays in the list and the file in its place.
    site.environment(true);
    for owner in &doomed {
        let inputs = [format!("type={}", owner.kind), format!("name={}", owner.name)];
        site.run("maintain-dbusers-delete", &inputs.each_ref().map(String::as_str)).expect(13);
        assert_eq!(accounts_of(&site.servers.s1, &format!("^{}$", owner.account)), [""; 0]);
        assert!(site.path(*owner).exists() && !site.row(*owner).is_empty(), "{owner:?}");
    }
    // Three servers less for each of three, and the mark of each.
    assert_eq!(hosts(), "21");
    assert_eq!(site.api.written(), asked, "files and variables go last");

    // Meanwhile nobody makes them again where they are gone.
    site.run("harvest-replicas", &[]).expect(13);
    for owner in &doomed {
        assert_eq!(accounts_of(&site.servers.s1, &format!("^{}$", owner.account)), [""; 0], "{owner:?}");
    }
    // What the server that is away owes the other six is recorded.
    assert_eq!(hosts(), "27");

    site.environment(false);
    // Somebody has removed one file: to the service that is an error, and here it is done.
    std::fs::remove_file(site.path(doomed[2])).unwrap();
    for owner in &doomed {
        let inputs = [format!("type={}", owner.kind), format!("name={}", owner.name)];
        let inputs = inputs.each_ref().map(String::as_str);
        // A wrong type is no reason to remove anything.
        let wrong = if owner.kind == "user" { "type=paws" } else { "type=user" };
        site.run("maintain-dbusers-delete", &[wrong, inputs[1]])
            .expect(10)
            .says("there is no account of this type and name");
        site.run("maintain-dbusers-delete", &inputs).expect(0);
        is_nowhere(&site, *owner);
    }
    for owner in &others {
        is_whole(&site, *owner);
    }
    assert_eq!(hosts(), "24");

    site.api.change("citation-checker", "MINE", None);
    // Who is in the directory gets another account.
    site.run("maintain-dbusers-populate", &[]).expect(0);
    for owner in OWNERS {
        is_whole(&site, owner);
    }
    for (owner, password) in doomed.iter().zip(passwords) {
        assert_ne!(site.password(*owner), password, "{owner:?}");
    }
    assert_eq!(hosts(), "33");
    site.servers.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
