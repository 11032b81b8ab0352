//! `<user>.env`: the port a unit file starts the instance on. The file holds tokens as well: nothing but the number
//! behind `T3_PORT=` ever leaves this module, and no line of it is quoted anywhere.

use std::io::ErrorKind;
use std::path::Path;

use super::Port;
use super::source_file::{self, ReadError};

/// What the file says about the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvPort {
    /// No env directory is configured.
    NotCompared,
    Missing,
    /// Normal for a program without privilege; the text says why.
    Unreadable(String),
    /// There is no `T3_PORT=`, or (with the line) it names no port.
    Invalid(Option<usize>),
    Port {
        line: usize,
        port: Port,
    },
}

pub fn read(path: &Path) -> EnvPort {
    match source_file::read(path) {
        Ok(content) => port(&content),
        Err(ReadError::Io(error)) if error.kind() == ErrorKind::NotFound => EnvPort::Missing,
        Err(error) => EnvPort::Unreadable(error.to_string()),
    }
}

/// The last assignment counts, as it does for systemd and for a shell.
fn port(content: &[u8]) -> EnvPort {
    let mut found = EnvPort::Invalid(None);
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let Some(value) = line.strip_prefix(b"T3_PORT=") else { continue };
        let number = std::str::from_utf8(unquoted(value)).ok().and_then(|value| value.parse().ok());
        found = match number.and_then(Port::new) {
            Some(port) => EnvPort::Port { line: index + 1, port },
            None => EnvPort::Invalid(Some(index + 1)),
        };
    }
    found
}

fn unquoted(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    match value {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, number: u16) -> EnvPort {
        EnvPort::Port { line, port: Port::new(number).expect("a port") }
    }

    #[test]
    fn the_last_assignment_counts_quoted_or_not() {
        assert_eq!(port(b"T3_PORT=4001\n"), at(1, 4001));
        assert_eq!(port(b"A=1\nexport T3_PORT=\"4001\"\r\n"), at(2, 4001));
        assert_eq!(port(b"T3_PORT=1\nT3_PORT='2'"), at(2, 2));
    }

    #[test]
    fn a_file_without_a_port_is_told_from_one_with_a_bad_port() {
        assert_eq!(port(b"#T3_PORT=4001\nXT3_PORT=1"), EnvPort::Invalid(None));
        for bad in ["", "0", "65536", "x", "40 01", "\"4001"] {
            assert_eq!(port(format!("\nT3_PORT={bad}\n").as_bytes()), EnvPort::Invalid(Some(2)), "{bad}");
        }
    }

    #[test]
    fn a_token_beside_the_port_is_in_nothing_that_is_returned() {
        let said = format!("{:?}", port(b"TOKEN=hunter2\nT3_PORT=hunter2\nMORE=hunter2\n"));
        assert!(!said.contains("hunter2"), "{said}");
    }
}
