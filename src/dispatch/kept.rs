//! Where a browser lands after its login: the path and query it asked for, if they cannot lead to another host.

/// The longest path that is kept; t3's own are a tenth of it.
const MAX_KEPT: usize = 4096;

/// The target of the redirect, always on this host; `/` where the request's target is not plainly so.
pub fn kept(target: &str) -> &str {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    // Browsers read '\' as '/' and drop tabs and line ends, so "/\evil" and "/<tab>/evil" are other hosts to them.
    let plain = target.len() <= MAX_KEPT
        && target.starts_with('/')
        && target.bytes().all(|byte| byte.is_ascii_graphic())
        && !path.contains("//")
        && !path.contains('\\')
        && !path.split('/').any(|segment| matches!(segment, "." | ".."));
    if plain { target } else { "/" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_deep_link_is_kept_with_its_query() {
        for target in ["/", "/threads/7?tab=diff&x=%2F%2Fy", "/a?next=//evil.example", "/a%2Fb"] {
            assert_eq!(kept(target), target);
        }
    }

    #[test]
    fn nothing_that_leads_elsewhere_is_kept() {
        for target in [
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/a//evil.example",
            "/a\\..\\b",
            "/./evil",
            "/.//evil.example",
            "/../x",
            "http://evil.example/",
            "https:evil.example",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/\r\nSet-Cookie: a=b",
            "/ x",
            "",
            "*",
            "evil",
            "/\u{a0}x",
        ] {
            assert_eq!(kept(target), "/", "{target:?}");
        }
        assert_eq!(kept(&format!("/{}", "a".repeat(MAX_KEPT))), "/");
    }

    proptest! {
        #[test]
        fn a_browser_stays_on_the_host_whatever_was_asked(target in r"[/\\.a:@?#\t\r\n%2f ]{0,24}") {
            let base = reqwest::Url::parse("https://t3.example/deep/link?x").expect("a url");
            let landed = base.join(kept(&target)).expect("a url");
            prop_assert_eq!(landed.host_str(), Some("t3.example"));
            prop_assert_eq!(landed.scheme(), "https");
        }
    }
}
