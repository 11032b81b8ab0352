//! How t3 tells of a failure: on stdout, nested, the root cause in the last `[cause]:` line, stderr empty (CONTRACT §2.1).

use super::clock::Millis;
use super::release::Release;
use super::store::StoreError;

/// A failed command: what was tried, and why it failed.
#[derive(Debug)]
pub struct Failure {
    layers: Vec<String>,
}

impl Failure {
    pub fn new(tried: &str, cause: impl std::fmt::Display) -> Self {
        Self { layers: vec![tried.to_owned(), format!("Error: {cause}")] }
    }

    /// A database call that failed below something that was tried.
    pub fn store(tried: &str, error: &StoreError) -> Self {
        let step = if error.while_preparing() { "prepare" } else { "execute" };
        let below = format!("SqlError: Failed to {step} statement");
        Self { layers: vec![tried.to_owned(), below, format!("Error: {}", error.message())] }
    }

    /// The text for stdout.
    pub fn report(&self, release: &Release) -> String {
        let fiber = if release.since(28) { 5 } else { 3 };
        let mut text = format!("[{}] ERROR (#{fiber}): ", Millis::now().time_of_day());
        let last = self.layers.len() - 1;
        for (depth, layer) in self.layers.iter().enumerate() {
            let indent = "  ".repeat(depth);
            if depth > 0 {
                text.push_str(&format!("{indent}[cause]: "));
            }
            text.push_str(&format!("{layer}\n{indent}    at stand-in (t3)"));
            text.push_str(if depth < last { " {\n" } else { "\n" });
        }
        for depth in (0..last).rev() {
            text.push_str(&format!("{}}}\n", "  ".repeat(depth)));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cause_is_the_root() {
        let release = "0.0.24".parse().expect("a version");
        let report =
            Failure::store("AuthError: no credential was made", &StoreError::Locked).report(&release);
        let last = report.lines().rfind(|line| line.contains("[cause]:")).expect("a cause");
        assert_eq!(last.trim(), "[cause]: Error: database is locked");
        assert!(report.contains("ERROR (#3): AuthError: no credential was made"));
        assert_eq!(report.matches('{').count(), report.matches('}').count());
    }
}
