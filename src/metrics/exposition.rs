//! The two formats of `/metrics`. The library writes OpenMetrics; the classic format is that document, line by line:
//! there is one truth, and a value cannot differ between the two.

use std::fmt::{self, Write};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A format of the exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`, which every Prometheus reads.
    Classic,
    /// OpenMetrics 1.0.0: with exemplars.
    OpenMetrics,
}

impl Format {
    /// Chooses by the request's `Accept` header (several are joined by commas, none is empty): OpenMetrics only where it
    /// is named and liked no less than plain text, so that a browser or `curl` gets the classic format.
    pub fn negotiate(accept: &str) -> Self {
        let (mut open_metrics, mut classic) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse::<f32>().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match (media.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open_metrics = quality.max(open_metrics);
                }
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => {
                    classic = quality.max(classic);
                }
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= classic { Self::OpenMetrics } else { Self::Classic }
    }

    /// The answer's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A document of any length, in pieces: one string would be copied over and over while it grows.
#[derive(Debug, Default)]
struct Pieces(Vec<String>);

impl Pieces {
    const SIZE: usize = 64 * 1024;
}

impl Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.0.last_mut() {
            Some(piece) if piece.capacity() - piece.len() >= text.len() => piece.push_str(text),
            _ => {
                let mut piece = String::with_capacity(Self::SIZE.max(text.len()));
                piece.push_str(text);
                self.0.push(piece);
            }
        }
        Ok(())
    }
}

pub(super) fn render(registry: &Registry, format: Format) -> Vec<String> {
    let mut pieces = Pieces::default();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut pieces, registry),
        Format::Classic => text::encode(&mut Classic::to(&mut pieces), registry),
    };
    written.expect("writing to a string does not fail");
    pieces.0
}

/// Turns what is written to it into the classic format. OpenMetrics names a family without `_total` or `_info` and has
/// a type `info`; the classic format names every family as its samples are named, and has neither units, exemplars nor
/// an end mark.
struct Classic<'a, W> {
    out: &'a mut W,
    /// What has been written of a line that has not ended.
    begun: String,
    help: String,
}

impl<'a, W: Write> Classic<'a, W> {
    fn to(out: &'a mut W) -> Self {
        Self { out, begun: String::new(), help: String::new() }
    }

    fn line(&mut self, line: &str) -> fmt::Result {
        if let Some(named) = line.strip_prefix("# HELP ") {
            self.help.clear();
            self.help.push_str(named.split_once(' ').map_or("", |(_, help)| help));
        } else if let Some(named) = line.strip_prefix("# TYPE ") {
            let (family, kind) = named.split_once(' ').unwrap_or((named, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            let help = &self.help;
            writeln!(self.out, "# HELP {family}{suffix} {help}\n# TYPE {family}{suffix} {kind}")?;
        } else if !line.starts_with('#') {
            self.out.write_str(without_exemplar(line))?;
            self.out.write_char('\n')?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Classic<'_, W> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while let Some((line, rest)) = text.split_once('\n') {
            self.begun.push_str(line);
            let mut whole = std::mem::take(&mut self.begun);
            self.line(&whole)?;
            whole.clear();
            self.begun = whole;
            text = rest;
        }
        self.begun.push_str(text);
        Ok(())
    }
}

/// The sample before its exemplar. A label's value may itself hold ` # {` or a brace, so the labels are read as quoted
/// text.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in sample.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return sample[..at].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_given_only_to_those_who_ask_for_it() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_classic_only = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, expected) in [
            (prometheus_2, Format::OpenMetrics),
            (prometheus_3, Format::OpenMetrics),
            (prometheus_classic_only, Format::Classic),
            (browser, Format::Classic),
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("application/*", Format::Classic),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=0.9", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Format::Classic),
            ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", Format::Classic),
            ("application/openmetrics-text;q=0.3,text/plain;q=0.3", Format::OpenMetrics),
            ("application/openmetrics-text;q=often", Format::Classic),
            (";;=,,", Format::Classic),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "Accept: {accept}");
        }
    }

    #[test]
    fn the_content_type_is_the_one_that_was_negotiated() {
        for format in [Format::Classic, Format::OpenMetrics] {
            assert_eq!(Format::negotiate(format.content_type()), format);
        }
    }

    #[test]
    fn an_exemplar_is_told_from_a_label_that_looks_like_one() {
        for (sample, expected) in [
            ("a_total 1", "a_total 1"),
            ("a_total 1 # {trace_id=\"f00\"} 1.0 1753000000.5", "a_total 1"),
            (r#"a{user="x # {y} 1"} 2"#, r#"a{user="x # {y} 1"} 2"#),
            (r#"a{user="\" # {"} 2 # {trace_id="f00"} 1.0"#, r#"a{user="\" # {"} 2"#),
            (r#"a{user="\\"} 2 # {trace_id="f00"} 1.0"#, r#"a{user="\\"} 2"#),
        ] {
            assert_eq!(without_exemplar(sample), expected);
        }
    }

    #[test]
    fn the_classic_format_names_a_family_as_its_samples_are_named() {
        let open_metrics = "# HELP a Things.\n# TYPE a counter\na_total 1\n\
                            # HELP b_seconds Time.\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2.0\n\
                            # HELP c Facts.\n# TYPE c info\nc_info{d=\"e\"} 1\n# EOF\n";
        let mut classic = String::new();
        let mut writer = Classic::to(&mut classic);
        for piece in open_metrics.as_bytes().chunks(7) {
            writer.write_str(std::str::from_utf8(piece).expect("ASCII")).expect("a string takes everything");
        }
        assert_eq!(
            classic,
            "# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n\
             # HELP b_seconds Time.\n# TYPE b_seconds gauge\nb_seconds 2.0\n\
             # HELP c_info Facts.\n# TYPE c_info gauge\nc_info{d=\"e\"} 1\n"
        );
    }
}
