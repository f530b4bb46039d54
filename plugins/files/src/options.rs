//! Files of options, such as those in which the clients of MariaDB find their credentials: `name = value`, one to a line.

use farrier_model::Secret;

/// The value of an option, without quotes around it. The first one counts; one without a value is none.
pub fn option(text: &Secret, name: &str) -> Option<Secret> {
    text.reveal().lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['\'', '"']);
        (found.trim() == name && !value.is_empty()).then(|| Secret::new(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_clients_read_them() {
        let text = Secret::new("[client]\nuser=s1\npassword = 'a=b'\npassword = c\nempty =\nwords\n");
        let found = |name| option(&text, name).map(|value| value.reveal().to_owned());
        assert_eq!(found("user").as_deref(), Some("s1"));
        assert_eq!(found("password").as_deref(), Some("a=b"));
        assert_eq!([found("empty"), found("words"), found("pass"), found("[client]")], [const { None }; 4]);
    }
}
