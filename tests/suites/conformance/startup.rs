//! What a starting server says that somebody may wait for: the migrations it ran, where it listens, and the block that
//! is missing when the auth tables are unusable. The rest of its log is prose.

#[derive(Debug, Default, PartialEq)]
pub struct Startup {
    /// `None` where nothing was said; some versions also say that nothing was to do.
    pub migrations: Option<Vec<String>>,
    pub listening: String,
    /// From `… is ready.` to the pairing URL. Which of its addresses a machine shows for the wildcard is its own affair.
    pub ready: String,
}

impl Startup {
    pub fn read(stdout: &str) -> Self {
        let migrations =
            stdout.split_once("migrations: [").and_then(|(_, rest)| rest.split_once(']')).map(|(list, _)| {
                list.split(',')
                    .map(|name| {
                        name.trim_matches(|letter: char| letter.is_whitespace() || letter == '\'').to_owned()
                    })
                    .filter(|name| !name.is_empty())
                    .collect()
            });
        let listening =
            stdout.lines().find_map(|line| line.split_once("Listening on ")).map(|(_, url)| url.to_owned());
        let listening = listening.unwrap_or_default();
        let ready = stdout
            .lines()
            .filter(|line| {
                ["T3 Code server is ready.", "Connection string: ", "Token: ", "Pairing URL: "]
                    .iter()
                    .any(|start| line.starts_with(start))
            })
            .map(|line| if listening.contains("//0.0.0.0:") { without_host(line) } else { line.to_owned() })
            .map(|line| format!("{line}\n"))
            .collect();
        Self { migrations, listening, ready }
    }
}

/// `http://192.0.2.2:3773/pair` → `http://:3773/pair`
fn without_host(line: &str) -> String {
    let Some((before, rest)) = line.split_once("://") else { return line.to_owned() };
    let host = rest.find([':', '/']).unwrap_or(rest.len());
    format!("{before}://{}", &rest[host..])
}

mod tests {
    use super::*;

    #[test]
    fn the_facts_are_read_out_of_the_prose() {
        let startup = Startup::read(
            "[06:14:41.354] INFO (#1): Migrations ran successfully\n  migrations: [ '31_A', '32_B' ]\n\
             [06:14:41.503] INFO (#185): Listening on http://127.0.0.1:41775\nT3 Code server is ready.\nToken: X\n\n",
        );
        assert_eq!(startup.migrations, Some(vec!["31_A".to_owned(), "32_B".to_owned()]));
        assert_eq!(startup.listening, "http://127.0.0.1:41775");
        assert_eq!(startup.ready, "T3 Code server is ready.\nToken: X\n");
    }

    #[test]
    fn the_address_shown_for_the_wildcard_is_left_out() {
        let log =
            "INFO (#1): Listening on http://0.0.0.0:3773\nPairing URL: http://192.0.2.2:3773/pair#token=X\n";
        assert_eq!(Startup::read(log).ready, "Pairing URL: http://:3773/pair#token=X\n");
        let loopback = log.replace("0.0.0.0", "127.0.0.1");
        assert_eq!(Startup::read(&loopback).ready, "Pairing URL: http://192.0.2.2:3773/pair#token=X\n");
    }

    #[test]
    fn nothing_said_and_nothing_to_do_are_told_apart() {
        assert_eq!(Startup::read("").migrations, None);
        assert_eq!(Startup::read("  migrations: []\n").migrations, Some(Vec::new()));
    }
}
