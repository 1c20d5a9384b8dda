//! A self-contained HTML page around the SVG.

use super::picture::Picture;
use super::{escape, svg};

/// The deployment as a page that needs no network.
pub fn html(picture: &Picture) -> String {
    html_page(&picture.name, &svg(picture))
}

/// A page with `body` (trusted markup) under a plain style for light and dark.
pub fn html_page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n\
         body {{ margin: 0; background: #ffffff; }}\n\
         main {{ padding: 8px; overflow-x: auto; }}\n\
         svg {{ max-width: max(100%, 960px); height: auto; }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ background: #0f172a; }} }}\n\
         </style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title)
    )
}
