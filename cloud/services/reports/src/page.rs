//! The report as an HTML page that can be printed: the curve, then the text of the report.

use std::fmt::Write as _;

use contract::annotations::RoastReport;

const STYLE: &str = "\
:root{color-scheme:light}body{font:15px/1.5 system-ui,sans-serif;color:#33302b;background:#fffdf9;\
max-width:60rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.4rem;overflow-wrap:anywhere}\
h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.25rem .75rem .25rem 0;\
border-bottom:1px solid #e4dfd6;text-align:left}figure{margin:1.5rem 0}figure,.wide{overflow-x:auto}td{white-space:nowrap}\
figure svg{width:100%;min-width:36rem;height:auto}.quiet{color:#6b655c}\
@media print{body{margin:0;max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}\
figure svg{min-width:0}}";

/// Returns the page. `curve` is an SVG that our own code drew; it is inserted without escaping.
pub fn html(report: &RoastReport, curve: &str) -> String {
    let mut out = String::with_capacity(curve.len() + 16_384);
    let title = escape(&report.session_id);
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Roast {title}</title><style>{STYLE}</style></head><body>"
    );
    let mut table = false;
    let mut list = false;
    let mut drawn = false;
    for line in report.report.markdown.lines() {
        let row = line.starts_with('|');
        let item = line.strip_prefix("- ");
        if table && !row {
            out.push_str("</table></div>");
        }
        if list && item.is_none() {
            out.push_str("</ul>");
        }
        if row && !table {
            out.push_str("<div class=\"wide\"><table>");
        }
        if item.is_some() && !list {
            out.push_str("<ul>");
        }
        (table, list) = (row, item.is_some());
        if row {
            push_row(&mut out, line);
        } else if let Some(item) = item {
            let _ = write!(out, "<li>{}</li>", inline(item));
        } else if let Some(title) = line.strip_prefix("# ") {
            let _ = write!(out, "<h1>{}</h1>", inline(title));
            if !drawn {
                drawn = true;
                let _ = write!(out, "<figure>{curve}</figure>");
            }
        } else if let Some(title) = line.strip_prefix("## ") {
            let _ = write!(out, "<h2>{}</h2>", inline(title));
        } else if !line.is_empty() {
            let _ = write!(out, "<p>{}</p>", inline(line));
        }
    }
    if table {
        out.push_str("</table></div>");
    }
    if list {
        out.push_str("</ul>");
    }
    let _ = write!(out, "<p class=\"quiet\">{}</p></body></html>", report.created_at);
    out
}

/// Appends one row of our own Markdown tables. Skips the separator line below the header.
fn push_row(out: &mut String, line: &str) {
    let cells = cells(line);
    let ruled = cells.iter().all(|cell| cell.chars().all(|c| "-: ".contains(c)));
    if ruled {
        return;
    }
    out.push_str("<tr>");
    for cell in cells {
        let _ = write!(out, "<td>{}</td>", inline(cell.trim()));
    }
    out.push_str("</tr>");
}

/// Splits a table row at the `|` characters that are not escaped.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    let inner = line.trim_start_matches('|');
    for c in inner.strip_suffix('|').unwrap_or(inner).chars() {
        if c == '|' && !escaped {
            cells.push(String::new());
        } else if let Some(cell) = cells.last_mut() {
            cell.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    cells
}

/// Converts our own inline markup to HTML: bold, and backslash escapes. Escapes everything else.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut bold = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                if let Some(next) = chars.next() {
                    push_escaped(&mut out, next);
                }
            }
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                out.push_str(if bold { "</b>" } else { "<b>" });
                bold = !bold;
            }
            c => push_escaped(&mut out, c),
        }
    }
    if bold {
        out.push_str("</b>");
    }
    out
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '&' => out.push_str("&amp;"),
        '"' => out.push_str("&quot;"),
        c => out.push(c),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_escaped(&mut out, c));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_markup_is_shown_and_nobody_else_s_is() {
        assert_eq!(
            inline("**WARN** a\\|b \\<i\\> & <b>"),
            "<b>WARN</b> a|b &lt;i&gt; &amp; &lt;b&gt;"
        );
        assert_eq!(cells("| a | b\\|c |"), [" a ", " b\\|c "]);
        let mut out = String::new();
        push_row(&mut out, "|---|---:|");
        assert_eq!(out, "");
    }
}
