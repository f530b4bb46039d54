//! Words that shells would read as something else, through real servers whose accounts have dash and bash as their shell.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use farrier_testkit::sshd::{Options, Sshd};
use proptest::prelude::*;
use serde_json::json;

use super::tests::{field, reading, run, world};
use crate::tests::World;

/// Two programs that read what the quoting function writes, and the hosts that use them.
static SHELLS: LazyLock<[(Sshd, World, tokio::runtime::Runtime); 2]> = LazyLock::new(|| {
    ["dash", "bash"].map(|shell| {
        let server = Sshd::start(Options { shell: Some(shell.into()), ..Options::default() });
        let world = world(&server, &["worker-1"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        (server, world, runtime)
    })
});

/// One of all words, for a number: whole ones that are known to do harm, and any mixture of letters that shells read.
/// Cheaper than a strategy, which takes longer to make so many words than the shells do to read them.
fn word(mut seed: u64) -> String {
    const HARMFUL: [&str; 12] = [
        "",
        "--",
        "-oProxyCommand=id",
        "$(id)",
        "`id`",
        "; rm -rf /",
        "*",
        "~root",
        "\\",
        "\n",
        "'",
        "\u{1b}[31m",
    ];
    const LETTERS: &str = "-$`'\"\\;&|<>(){}[]*?~#!%=^,. \n\t\r\u{1}\u{7f}aZ0é\u{202e}\u{feff}🦊";
    let letters: Vec<char> = LETTERS.chars().collect();
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    if next(8) == 0 {
        return HARMFUL[next(HARMFUL.len())].to_owned();
    }
    (0..next(13)).map(|_| letters[next(letters.len())]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever the words are, the program gets them byte for byte as its arguments: about 100,000 of them, through each shell.
    #[test]
    fn words_arrive_as_they_are(seeds in proptest::collection::vec(any::<u64>(), 2000..4000)) {
        let words: Vec<String> = seeds.into_iter().map(word).collect();
        let mut argv = vec!["printf", "%s\\0"];
        argv.extend(words.iter().map(String::as_str));
        let mut input = reading("worker-1", &argv);
        input["max_output"] = json!(1 << 20);
        let expected: String = words.iter().flat_map(|word| [word, "\0"]).collect();
        for (_, world, runtime) in &*SHELLS {
            let output = runtime.block_on(run(world, &input)).unwrap();
            prop_assert_eq!(field(&output, "stdout"), expected.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// As values in the environment of a script, of which they never become a part: about 16,000 of them, through each shell.
    #[test]
    fn values_arrive_as_they_are(seeds in proptest::collection::vec(any::<u64>(), 500..1500)) {
        let params: BTreeMap<String, String> =
            seeds.into_iter().enumerate().map(|(at, seed)| (format!("word_{at}"), word(seed))).collect();
        let input = json!({
            "target": "nodes", "hosts": "worker-1", "script": "env -0", "params": params, "read_only": true,
            "max_output": 1 << 20,
        });
        for (_, world, runtime) in &*SHELLS {
            let output = field(&runtime.block_on(world.run("host.script", &input)).unwrap(), "stdout");
            let values = output.split_terminator('\0').filter_map(|line| line.split_once('='));
            let found: BTreeMap<String, String> = values
                .filter(|(name, _)| name.starts_with("word_"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            prop_assert_eq!(&found, &params);
        }
    }
}
