//! Pictures of a deployment: one of each distinct layer, as text, DOT, Mermaid, SVG, HTML or JSON.
//!
//! All forms are drawn from one [`Picture`], which needs no model: without one, layers are told apart by what the file's
//! selectors say.

mod dot;
mod html;
mod mermaid;
mod picture;
mod svg;
mod text;

pub use dot::dot;
pub use html::{html, html_page};
pub use mermaid::mermaid;
pub use picture::{Box, Edge, Lane, LayerPicture, Part, Picture, picture};
pub use svg::svg;
pub use text::text;

/// Escapes text for XML and HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
