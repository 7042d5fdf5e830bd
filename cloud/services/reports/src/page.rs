//! The report as an HTML page that can be printed: its title, the curve, then its text.
//!
//! Every client that may write reports chooses their Markdown, so none of it becomes markup other
//! than that of Markdown itself: raw HTML is shown as text, and no link or image is made.

use askama::Template;
use contract::annotations::RoastReport;
use pulldown_cmark::html::push_html;
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The largest number of table cells. A report with more shows its tables as text: without a bound,
/// many narrow rows under wide headers would exhaust the memory.
const TABLE_CELLS_MAX: usize = 100_000;

#[derive(Template)]
#[template(path = "report.html")]
struct ReportPage<'a> {
    report: &'a RoastReport,
    /// HTML up to and including the report's title.
    title: String,
    /// The curve as SVG.
    curve: &'a str,
    /// The HTML that follows the title.
    text: String,
}

/// Returns the page. `curve` is an SVG that our own code drew; it is inserted without escaping.
///
/// # Errors
/// If the template cannot be rendered.
pub fn html(report: &RoastReport, curve: &str) -> askama::Result<String> {
    let (title, text) = to_html(&report.report.markdown);
    ReportPage { report, title, curve, text }.render()
}

/// Converts Markdown to HTML, in two parts: up to and including the first heading of level 1, and
/// the rest. Without such a heading, the second part is empty.
fn to_html(markdown: &str) -> (String, String) {
    let tables = if table_cells_max(markdown) > TABLE_CELLS_MAX {
        Options::empty()
    } else {
        Options::ENABLE_TABLES
    };
    let mut events = Parser::new_ext(markdown, tables).filter_map(permitted);
    let title_end = Event::End(TagEnd::Heading(HeadingLevel::H1));
    let mut titled = false;
    let until_title = std::iter::from_fn(|| {
        let event = if titled { None } else { events.next() };
        titled |= event.as_ref() == Some(&title_end);
        event
    });
    let (mut title, mut text) = (String::new(), String::new());
    push_html(&mut title, until_title);
    push_html(&mut text, events);
    (title, text)
}

/// Returns more than the number of cells that the parser makes of the tables in `markdown`: it
/// completes each row to the width of its table, whose header may be a single long line.
fn table_cells_max(markdown: &str) -> usize {
    let bars = |line: &str| line.bytes().filter(|byte| *byte == b'|').count();
    let widest = markdown.lines().map(bars).max().unwrap_or(0);
    widest.saturating_add(1).saturating_mul(markdown.lines().count())
}

/// Returns what the page shows of a piece of Markdown.
fn permitted(event: Event<'_>) -> Option<Event<'_>> {
    Some(match event {
        Event::Html(html) | Event::InlineHtml(html) => Event::Text(html),
        // A note of several lines keeps its lines.
        Event::SoftBreak => Event::HardBreak,
        Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
        Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
        // The text of a link and the description of an image are separate events, and stay.
        Event::Start(Tag::Link { .. } | Tag::Image { .. })
        | Event::End(TagEnd::Link | TagEnd::Image) => return None,
        // A wide table scrolls in a box of its own. Its columns are not aligned: the page aligns
        // all of them to the left.
        Event::Start(Tag::Table(_)) => Event::Html("<div class=\"wide\"><table>".into()),
        Event::End(TagEnd::Table) => Event::Html("</tbody></table></div>\n".into()),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(markdown: &str) -> String {
        let report: RoastReport = serde_json::from_value(json!({
            "sessionId": "S-<1>", "orgId": "acme", "siteId": "hall", "machineId": "m1",
            "createdAt": "2025-10-05T21:08:15.000Z", "analysis": {}, "markdown": markdown,
        }))
        .unwrap();
        html(&report, "<svg></svg>").unwrap()
    }

    #[test]
    fn a_report_becomes_a_title_a_curve_and_a_text() {
        let page = page(
            "# Roast S-1\n\nWritten by the report worker.\n\n## Summary\n\n| | |\n|---|---|\n\
             | Machine | hall / m1 |\n| Beans | a\\|b |\n\n## Phases\n\n| Phase | Share |\n\
             |---|---:|\n| DRYING | 40 % |\n\n## Warnings\n\n- **WARN** it was \\<fast\\>\n- b & c\n\n\
             ## Next Roast Plan (v1)\n\nNone.\n\n",
        );
        let parts = [
            "<h1>Roast S-1</h1>",
            "<figure><svg></svg></figure>",
            "<p>Written by the report worker.</p>",
            "<h2>Summary</h2>",
            "<div class=\"wide\"><table><thead><tr><th></th><th></th></tr></thead><tbody>",
            "<tr><td>Machine</td><td>hall / m1</td></tr>",
            "<tr><td>Beans</td><td>a|b</td></tr>",
            "</tbody></table></div>",
            "<h2>Phases</h2>",
            "<th>Phase</th><th>Share</th>",
            "<tr><td>DRYING</td><td>40 %</td></tr>",
            "<li><strong>WARN</strong> it was &lt;fast&gt;</li>",
            "<li>b &amp; c</li>",
            "<h2>Next Roast Plan (v1)</h2>",
            "<p>None.</p>",
            "<p class=\"quiet\">2025-10-05T21:08:15.000Z</p>",
        ];
        let mut rest = page.as_str();
        for part in parts {
            let found = rest.split_once(part);
            rest = found.unwrap_or_else(|| panic!("no {part:?} in {rest}")).1;
        }
        assert!(!page.contains("---") && !page.contains("S-<1>"), "{page}");
    }

    #[test]
    fn a_report_without_a_title_is_shown_above_its_curve() {
        let page = page("Some text.");
        assert!(page.find("<p>Some text.</p>").unwrap() < page.find("<svg>").unwrap(), "{page}");
    }

    #[test]
    fn a_report_cannot_add_markup_of_its_own() {
        let tags_of_markdown = [
            "p",
            "em",
            "h1",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "div class=\"wide\"",
            "div",
            "pre",
            "code",
            "code class=\"language-x&quot;&gt;&lt;b&gt;\"",
        ];
        for (markdown, shown) in [
            ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
            ("<ScRiPt>alert(1)\n\nb", "&lt;ScRiPt&gt;alert(1)\n"),
            ("a <img src=x onerror=alert(1)> b", "<p>a &lt;img src=x onerror=alert(1)&gt; b</p>"),
            ("[click](javascript:alert(1))", "<p>click</p>"),
            ("[*click*](https://roaster.example/ \"t\")", "<p><em>click</em></p>"),
            ("[click][x]\n\n[x]: javascript:alert(1)", "<p>click</p>"),
            ("<javascript:alert(1)>", "<p>javascript:alert(1)</p>"),
            ("![cup](https://roaster.example/a.png)", "<p>cup</p>"),
            ("a <div", "<p>a &lt;div</p>"),
            ("<div onclick=\"a()\"", "&lt;div onclick="),
            ("<!-- a", "&lt;!-- a"),
            ("</body></html>", "&lt;/body&gt;&lt;/html&gt;"),
            ("# <b>x</b>", "<h1>&lt;b&gt;x&lt;/b&gt;</h1>"),
            ("| <i>a</i> |\n|---|\n| <u |", "<th>&lt;i&gt;a&lt;/i&gt;</th>"),
            ("```x\"><b>\n<i>\n```", "&lt;i&gt;"),
        ] {
            assert!(page(markdown).contains(shown), "{markdown:?} is shown as {}", page(markdown));
            let (title, text) = to_html(markdown);
            for tag in (title + &text).split('<').skip(1) {
                let (tag, _) = tag.split_once('>').unwrap();
                let name = tag.trim_start_matches('/');
                assert!(tags_of_markdown.contains(&name), "{markdown:?} makes the tag <{tag}>");
            }
        }
    }

    #[test]
    fn the_lines_of_a_note_are_kept() {
        assert!(page("first\nsecond").contains("first<br />\nsecond"));
    }

    #[test]
    fn tables_above_the_bound_are_shown_as_text() {
        let table = |columns: usize, rows: usize| {
            let line = |cell: &str| format!("{}\n", cell.repeat(columns));
            format!("{}{}{}\n", line("|a"), line("|-"), "|b\n".repeat(rows))
        };
        assert!(page(&table(3, 2)).contains("<td>b</td>"));
        // 960 KiB of such tables would become 70 million cells.
        let many = page(&table(400, 500).repeat(300));
        assert!(!many.contains("<td>") && many.len() < 3_000_000, "{} bytes", many.len());
    }
}
