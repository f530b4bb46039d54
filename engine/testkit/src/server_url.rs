//! The few parts of a server's URL that the command-line clients want one by one.

use std::fmt;

use anyhow::{Context, Result};

/// `scheme://user:password@host:port`, for servers whose names and passwords need no escaping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    pub(crate) scheme: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl ServerUrl {
    /// Reads a URL; anything after the port is left out.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let read = || {
            let (scheme, rest) = text.split_once("://")?;
            let authority = rest.split(['/', '?']).next()?;
            let (who, place) = authority.rsplit_once('@')?;
            let (user, password) = who.split_once(':')?;
            let (host, port) = place.rsplit_once(':')?;
            Some(ServerUrl {
                scheme: scheme.to_owned(),
                user: user.to_owned(),
                password: password.to_owned(),
                host: host.to_owned(),
                port: port.parse().ok()?,
            })
        };
        read().with_context(|| format!("`{text}` is not of the form scheme://user:password@host:port"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerUrl { scheme, user, password, host, port } = self;
        write!(formatter, "{scheme}://{user}:{password}@{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_written() {
        let url = ServerUrl::parse("mysql://root:p@ss@127.0.0.1:3307/tools?x=1").unwrap();
        assert_eq!((url.user.as_str(), url.password.as_str()), ("root", "p@ss"));
        assert_eq!((url.host.as_str(), url.port), ("127.0.0.1", 3307));
        assert_eq!(url.to_string(), "mysql://root:p@ss@127.0.0.1:3307");
        for wrong in
            ["", "mysql://127.0.0.1:1", "mysql://a@127.0.0.1:1", "mysql://a:b@127.0.0.1", "mysql://a:b@h:x"]
        {
            assert!(ServerUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
