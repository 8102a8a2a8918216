//! A notice as HTML that mail readers show: tables and inline styles only, nothing from elsewhere, readable on a phone. Every
//! colour of text comes with that of its ground, so that a reader in dark mode that changes one changes both.

use std::fmt::Write as _;

use super::message::{FULL_MAX, LINES_MAX, MESSAGE_MAX};
use crate::deliver::text::{self, Fact};
use crate::model::{Alert, Change, Notice, Severity, Status, shown};

const FONT: &str = "font-family:-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif";
const MONO: &str = "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace";

/// The whole page.
pub(super) fn page(notice: &Notice, headline: &str) -> String {
    let mut body = String::new();
    for (index, alert) in notice.alerts.iter().take(LINES_MAX).enumerate() {
        if index < FULL_MAX { full(&mut body, alert, notice.alerts.len() > 1) } else { line(&mut body, alert) }
    }
    if let Some(more) = notice.alerts.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        let _ = write!(body, "<p style=\"margin:12px 0;color:#57606a\">and {more} more</p>");
    }
    frame(headline, notice.head(), &body)
}

/// The page around a text of the user's own.
pub(super) fn own(headline: &str, head: &Alert, text: &str) -> String {
    let text = escape(text);
    frame(headline, head, &format!("<div style=\"white-space:pre-wrap;overflow-wrap:anywhere\">{text}</div>"))
}

fn frame(headline: &str, head: &Alert, body: &str) -> String {
    let (ground, headline) = (colour(head), escape(headline));
    // Lines stay below the 998 bytes that SMTP allows, whatever encodes them.
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{headline}</title>\n</head>\n\
         <body style=\"margin:0;padding:0;background:#f6f8fa\">\n\
         <table role=\"presentation\" width=\"100%\" cellspacing=\"0\" cellpadding=\"0\" style=\"background:#f6f8fa\"><tr>\
         <td align=\"center\" style=\"padding:12px\">\n\
         <table role=\"presentation\" width=\"100%\" cellspacing=\"0\" cellpadding=\"0\" \
         style=\"max-width:600px;background:#ffffff;border:1px solid #d0d7de;{FONT};font-size:15px;line-height:1.45;\
         color:#1f2328\">\n\
         <tr><td style=\"background:{ground};color:#ffffff;padding:14px 18px;font-size:17px;font-weight:600;\
         overflow-wrap:anywhere\">{headline}</td></tr>\n\
         <tr><td style=\"background:#ffffff;color:#1f2328;padding:6px 18px 16px\">\n{body}</td></tr>\n</table>\n\
         </td></tr></table>\n</body>\n</html>\n"
    )
}

fn full(out: &mut String, alert: &Alert, is_one_of_many: bool) {
    if is_one_of_many {
        let (word, metric) = (text::word(alert), escape(&shown(&alert.metric, 64)));
        // Writing into a String does not fail, here and below.
        let _ = writeln!(
            out,
            "<p style=\"margin:14px 0 0\"><span style=\"background:{};color:#ffffff;padding:1px 7px;font-size:13px;\
             font-weight:600\">{word}</span> <b>{metric}</b></p>",
            colour(alert)
        );
    }
    let message = escape(&shown(&alert.message, MESSAGE_MAX));
    let _ = write!(out, "<p style=\"margin:10px 0 12px;overflow-wrap:anywhere\">{message}</p>\n{TABLE}\n");
    for fact in text::facts(alert) {
        row(out, &fact);
    }
    out.push_str("</table>\n");
}

const TABLE: &str = "<table role=\"presentation\" width=\"100%\" cellspacing=\"0\" cellpadding=\"0\" \
                     style=\"border-collapse:collapse;font-size:14px\">";

fn row(out: &mut String, fact: &Fact) {
    let value = match fact.name {
        "Runbook" => link(&fact.text),
        "Course" => format!("<span style=\"{MONO}\">{}</span>", escape(&fact.text)),
        _ => escape(&fact.text).replace('\n', "<br>\n"),
    };
    let _ = write!(
        out,
        "<tr><td style=\"padding:5px 12px 5px 0;border-top:1px solid #eaeef2;background:#ffffff;color:#57606a;\
         vertical-align:top;white-space:nowrap\">{}</td>\n\
         <td width=\"100%\" style=\"padding:5px 0;border-top:1px solid #eaeef2;background:#ffffff;color:#1f2328;\
         vertical-align:top;overflow-wrap:anywhere\">{value}</td></tr>\n",
        escape(fact.name)
    );
}

fn line(out: &mut String, alert: &Alert) {
    let message = format!("{} {}: {}", text::word(alert), shown(&alert.metric, 64), shown(&alert.message, 200));
    let _ = writeln!(
        out,
        "<p style=\"margin:0;padding:5px 0;border-top:1px solid #eaeef2;overflow-wrap:anywhere\">{}</p>",
        escape(&message)
    );
}

/// The runbook comes from the configuration. Only what a browser opens as a page becomes a link.
fn link(url: &str) -> String {
    let text = escape(url);
    if url.starts_with("https://") || url.starts_with("http://") {
        format!("<a href=\"{text}\" style=\"color:#0550ae\">{text}</a>")
    } else {
        text
    }
}

/// The ground of white text, dark enough to be read.
fn colour(alert: &Alert) -> &'static str {
    match (alert.status, alert.change, alert.severity) {
        (Status::Resolved, ..) => "#1a7f37",
        (_, Change::Test, _) => "#57606a",
        (.., Severity::Info) => "#0969da",
        (.., Severity::Warn) => "#9a6700",
        (.., Severity::Critical) => "#cf222e",
        (.., Severity::Emergency) => "#82071e",
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(escape("<a href='x'>\"&amp;"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;amp;");
        assert_eq!(link("javascript:alert(1)"), "javascript:alert(1)");
        assert!(link("https://wiki/\"onclick=\"x").starts_with("<a href=\"https://wiki/&quot;onclick=&quot;x\" style"));
    }
}
