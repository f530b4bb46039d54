//! `farrier plugin-runner` without the rest of Farrier, for the tests of this crate.

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(farrier_plugin_external::runner::main(&words));
}
