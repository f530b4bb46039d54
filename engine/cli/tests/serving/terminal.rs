//! `farrier login` on a terminal: `script` makes one, and what it would show is kept.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use farrier_testkit::wait_until;

use crate::common::FARRIER;
use crate::logins::over_files;
use crate::service::Serving;

const PASSWORD: &str = "carols-word";

/// A shell on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Runs a script for the shell in the project of a service. `$farrier` is the binary, told of the service.
    fn of(serving: &Serving, script: &str) -> Terminal {
        let usual = serving.project.command(&[]);
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--echo", "always", "--command", script, "/dev/null"])
            .current_dir(usual.get_current_dir().unwrap())
            .env("SHELL", "/bin/sh")
            .env("farrier", format!("{FARRIER} --server http://{}", serving.address))
            .env("XDG_STATE_HOME", serving.project.path("state"))
            .env_remove("FARRIER_TOKEN")
            .env("NO_COLOR", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keyboard, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let kept = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                kept.lock().unwrap().extend(&bytes[..count]);
            }
        });
        Terminal { child, keyboard, screen }
    }

    fn shows(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn until_it_shows(&self, text: &str) {
        wait_until(text, || self.shows().contains(text));
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_password_is_typed_and_not_shown() {
    let serving = over_files();
    let script =
        "read before; $farrier login --user carol; echo \"ended: $?\"; read after; echo \"read: $after\"";
    let mut terminal = Terminal::of(&serving, script);
    terminal.types("this is shown\n");
    terminal.until_it_shows("this is shown");
    terminal.until_it_shows("Password of carol");
    terminal.types(&format!("{PASSWORD}\n"));
    terminal.until_it_shows("ended: 0");
    // And the terminal is as it was.
    terminal.types("this as well\n");
    terminal.until_it_shows("read: this as well");
    let shown = terminal.shows();
    assert!(shown.contains("logged in as carol"), "{shown}");
    assert_eq!(shown.matches("this as well").count(), 2, "typed and read: {shown}");
    assert!(!shown.contains(PASSWORD), "{shown}");
    let logged_in = std::fs::read_dir(serving.project.path("state/farrier/logins")).unwrap().count();
    assert_eq!(logged_in, 1);
}

#[test]
fn a_password_that_is_broken_off_is_sent_nowhere_and_the_terminal_is_as_it_was() {
    let serving = over_files();
    let script = "$farrier login --user carol; echo \"ended: $?\"; read after; echo \"read: $after\"";
    let mut terminal = Terminal::of(&serving, script);
    terminal.until_it_shows("Password of carol");
    // The whole password, and then Ctrl-C, which needs no Return.
    terminal.types(&format!("{PASSWORD}\u{3}"));
    terminal.until_it_shows("ended: 64");
    terminal.types("this is shown\n");
    terminal.until_it_shows("read: this is shown");
    let shown = terminal.shows();
    assert!(shown.contains("nothing was sent") && !shown.contains(PASSWORD), "{shown}");
    assert_eq!(shown.matches("this is shown").count(), 2, "typed and read: {shown}");
    assert!(!serving.project.path("state").exists());
}
