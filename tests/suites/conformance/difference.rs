//! A difference between the recording and this run: found one at a time, shown all at once.

use std::fmt;

#[derive(Debug, PartialEq)]
pub struct Difference {
    pub step: String,
    /// `status`, `header vary`, `body.auth.policy`, `cause`…
    pub field: String,
    pub expected: String,
    pub got: String,
}

/// All differences of one recording.
pub struct Table<'a>(pub &'a [Difference]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 4]> = self
            .0
            .iter()
            .map(|row| {
                [cell(&row.step, 48), cell(&row.field, 40), cell(&row.expected, 90), cell(&row.got, 90)]
            })
            .collect();
        let heads = ["step", "field", "expected", "got"].map(str::to_owned);
        let mut widths = heads.each_ref().map(|head| head.chars().count());
        for row in &rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        for row in std::iter::once(&heads).chain(&rows) {
            let [step, field, expected, got] = row;
            let [a, b, c, _] = widths;
            writeln!(out, "{step:a$}  {field:b$}  {expected:c$}  {got}")?;
        }
        Ok(())
    }
}

/// One line, cut in the middle, so that the ends, which tell, stay.
fn cell(text: &str, width: usize) -> String {
    let line = text.replace('\n', "⏎");
    let length = line.chars().count();
    if length <= width {
        return line;
    }
    let half = (width - 1) / 2;
    let start: String = line.chars().take(half).collect();
    let end: String = line.chars().skip(length - half).collect();
    format!("{start}…{end}")
}

mod tests {
    use super::*;

    #[test]
    fn a_table_shows_every_difference_on_a_line_of_its_own() {
        let row = |step: &str, got: &str| Difference {
            step: step.to_owned(),
            field: "status".to_owned(),
            expected: "401".to_owned(),
            got: got.to_owned(),
        };
        let shown = Table(&[row("exchange", "500\n"), row("a longer name", "404")]).to_string();
        assert_eq!(
            shown,
            "step           field   expected  got\n\
             exchange       status  401       500⏎\n\
             a longer name  status  401       404\n"
        );
    }

    #[test]
    fn a_long_value_keeps_its_two_ends() {
        assert_eq!(cell("0123456789", 7), "012…789");
    }
}
