//! What a starting server says that somebody may wait for: the migrations it ran, where it listens, and the block that
//! is missing when the auth tables are unusable. The rest of its log is prose.

#[derive(Debug, Default, PartialEq)]
pub struct Startup {
    /// `None` where nothing was said; some versions also say that nothing was to do.
    pub migrations: Option<Vec<String>>,
    pub listening: String,
    /// From `… is ready.` to the pairing URL.
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
        let ready = stdout
            .lines()
            .filter(|line| {
                ["T3 Code server is ready.", "Connection string: ", "Token: ", "Pairing URL: "]
                    .iter()
                    .any(|start| line.starts_with(start))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        Self { migrations, listening: listening.unwrap_or_default(), ready }
    }
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
    fn nothing_said_and_nothing_to_do_are_told_apart() {
        assert_eq!(Startup::read("").migrations, None);
        assert_eq!(Startup::read("  migrations: []\n").migrations, Some(Vec::new()));
    }
}
