//! A builder's bytes as markup: colours of ECMA-48 become classes, every other sequence is dropped.
//!
//! Hostile bytes are the normal case: a builder writes what it likes. Only `ESC [ … m` (SGR) has an effect, and that only on the classes of
//! spans; cursor moves, titles, links (OSC), device strings and lone control bytes vanish. Text is escaped by the template, invalid UTF-8
//! becomes U+FFFD, and characters that turn the direction of text around are shown as such. A carriage return overwrites the line, as terminals do,
//! so that progress bars leave their last state.

use maud::{Markup, PreEscaped, Render, html};

/// How text looks at some place of a log. Handed from one piece of a log to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Colour of the text: 0 to 15 and one more, 0 for the page's own.
    fore: u8,
    /// Colour behind it, in the same way.
    back: u8,
    /// Bold, dim, italic, underlined, inverse, from the lowest bit up.
    marks: u8,
}

const BOLD: u8 = 1;
const DIM: u8 = 2;
const ITALIC: u8 = 4;
const UNDERLINED: u8 = 8;
const INVERSE: u8 = 16;

impl Style {
    /// Returns it as a number for an address.
    pub fn code(self) -> u32 {
        u32::from(self.marks) << 16 | u32::from(self.back) << 8 | u32::from(self.fore)
    }

    /// Returns the style of a number; what is beyond any style is the plain one.
    pub fn of_code(code: u32) -> Self {
        let [marks_high, marks, back, fore] = code.to_be_bytes();
        let is_one = marks_high == 0 && marks < 32 && back <= 16 && fore <= 16;
        if is_one { Self { fore, back, marks } } else { Self::default() }
    }

    fn classes(self) -> String {
        let mut classes = Vec::new();
        if self.fore > 0 {
            classes.push(format!("c{}", self.fore - 1));
        }
        if self.back > 0 {
            classes.push(format!("g{}", self.back - 1));
        }
        let marks = [(BOLD, "b"), (DIM, "d"), (ITALIC, "it"), (UNDERLINED, "u"), (INVERSE, "inv")];
        classes.extend(marks.into_iter().filter(|(mark, _)| self.marks & mark > 0).map(|(_, class)| class.to_owned()));
        classes.join(" ")
    }

    /// Follows the parameters of one SGR sequence.
    fn follow(&mut self, parameters: &[u32]) {
        let mut rest = parameters.iter().copied();
        while let Some(parameter) = rest.next() {
            match parameter {
                0 => *self = Self::default(),
                1 => self.marks |= BOLD,
                2 => self.marks |= DIM,
                3 => self.marks |= ITALIC,
                4 => self.marks |= UNDERLINED,
                7 => self.marks |= INVERSE,
                22 => self.marks &= !(BOLD | DIM),
                23 => self.marks &= !ITALIC,
                24 => self.marks &= !UNDERLINED,
                27 => self.marks &= !INVERSE,
                30..=37 => self.fore = small(parameter - 30) + 1,
                38 => self.fore = extended(&mut rest).unwrap_or(self.fore),
                39 => self.fore = 0,
                40..=47 => self.back = small(parameter - 40) + 1,
                48 => self.back = extended(&mut rest).unwrap_or(self.back),
                49 => self.back = 0,
                90..=97 => self.fore = small(parameter - 90) + 9,
                100..=107 => self.back = small(parameter - 100) + 9,
                _ => {}
            }
        }
    }
}

fn small(number: u32) -> u8 {
    u8::try_from(number).unwrap_or_default()
}

/// Reads a colour of 256, or one of red, green and blue, and returns the nearest of the 16.
fn extended(rest: &mut impl Iterator<Item = u32>) -> Option<u8> {
    match rest.next()? {
        5 => match rest.next()? {
            index @ 0..=15 => Some(small(index) + 1),
            index @ 16..=231 => {
                let cube = index - 16;
                let level = |step: u32| if step == 0 { 0 } else { 55 + 40 * step };
                Some(nearest(level(cube / 36), level(cube / 6 % 6), level(cube % 6)))
            }
            index @ 232..=255 => Some(nearest(8 + 10 * (index - 232), 8 + 10 * (index - 232), 8 + 10 * (index - 232))),
            _ => None,
        },
        2 => {
            let (red, green, blue) = (rest.next()?, rest.next()?, rest.next()?);
            Some(nearest(red.min(255), green.min(255), blue.min(255)))
        }
        _ => None,
    }
}

fn nearest(red: u32, green: u32, blue: u32) -> u8 {
    let strongest = red.max(green).max(blue);
    if strongest < 48 {
        return 1;
    }
    // A part is on where it is more than half of the strongest one; bright from three quarters of all that there is.
    let on = |part: u32| u8::from(part * 2 > strongest);
    let index = on(red) | on(green) << 1 | on(blue) << 2;
    index + if strongest > 208 { 9 } else { 1 }
}

/// One line of a log, ready to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Runs of text that look alike.
    pub runs: Vec<(Style, String)>,
}

impl Line {
    /// Reads a line, without its end, and moves `style` to what it is behind it.
    pub fn read(bytes: &[u8], style: &mut Style) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut line = Self::default();
        let mut rest = text.chars().peekable();
        let mut is_overwritten = false;
        while let Some(character) = rest.next() {
            match character {
                '\u{1b}' => sequence(&mut rest, style),
                '\u{9b}' => control(&mut rest, style),
                // What follows overwrites the line, if anything does.
                '\r' => is_overwritten = true,
                '\t' => line.push(*style, '\t', &mut is_overwritten),
                '\u{8}' => line.back(),
                _ if character.is_control() => {}
                _ if turns_text(character) => line.push(*style, '\u{fffd}', &mut is_overwritten),
                _ => line.push(*style, character, &mut is_overwritten),
            }
        }
        line
    }

    /// Returns its text without any looks.
    pub fn text(&self) -> String {
        self.runs.iter().map(|(_, text)| text.as_str()).collect()
    }

    fn push(&mut self, style: Style, character: char, is_overwritten: &mut bool) {
        if std::mem::take(is_overwritten) {
            self.runs.clear();
        }
        match self.runs.last_mut() {
            Some((last, text)) if *last == style => text.push(character),
            Some(_) | None => self.runs.push((style, String::from(character))),
        }
    }

    fn back(&mut self) {
        if let Some((_, text)) = self.runs.last_mut() {
            text.pop();
        }
        if self.runs.last().is_some_and(|(_, text)| text.is_empty()) {
            self.runs.pop();
        }
    }

    /// Returns it with every occurrence of some text marked; letters match whatever their case. Looks are left out then.
    pub fn marked(&self, wanted: &str) -> Markup {
        let text = self.text();
        let (plain, wanted) = (text.to_ascii_lowercase(), wanted.to_ascii_lowercase());
        if wanted.is_empty() {
            return self.render();
        }
        let mut at = 0;
        let mut parts = Vec::new();
        // Lower case of ASCII alone keeps every index where it was.
        while let Some(found) = plain[at..].find(&wanted).map(|found| found + at) {
            parts.push((&text[at..found], &text[found..found + wanted.len()]));
            at = found + wanted.len();
        }
        html! { @for (before, hit) in parts { (before) mark { (hit) } } (text[at..]) }
    }
}

impl Render for Line {
    fn render(&self) -> Markup {
        html! {
            @for (style, text) in &self.runs {
                @if *style == Style::default() { (text) } @else { span class=(style.classes()) { (text) } }
            }
        }
    }
}

/// Reads what follows an escape: only a control sequence has an effect.
fn sequence(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, style: &mut Style) {
    match rest.next() {
        Some('[') => control(rest, style),
        // Operating system commands, device strings, privacy messages and the like: up to their end, a bell or a string terminator.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(character) = rest.next() {
                match character {
                    '\u{7}' | '\u{9c}' => return,
                    '\u{1b}' if rest.peek() == Some(&'\\') => {
                        rest.next();
                        return;
                    }
                    _ => {}
                }
            }
        }
        // Choice of a character set: one more byte.
        Some('(' | ')' | '*' | '+' | '#' | '%' | ' ') => drop(rest.next()),
        Some(_) | None => {}
    }
}

/// Reads a control sequence, whose end is a byte from `@` to `~`. One without an end ends with the line.
fn control(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, style: &mut Style) {
    let mut parameters: Vec<u32> = vec![0];
    let mut is_plain = true;
    for character in rest.by_ref() {
        match character {
            '0'..='9' => {
                let last = parameters.last_mut().expect("there is one from the start, and none is taken out");
                *last = last.saturating_mul(10).saturating_add(character.to_digit(10).unwrap_or_default());
            }
            ';' | ':' if parameters.len() < PARAMETERS_MAX => parameters.push(0),
            ';' | ':' => {}
            'm' if is_plain => return style.follow(&parameters),
            '@'..='~' => return,
            _ => is_plain = false,
        }
    }
}

/// Returns whether a character changes the direction in which text is read, or hides what follows.
pub(crate) fn turns_text(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

/// Returns markup of a log's line.
pub fn line(bytes: &[u8]) -> PreEscaped<String> {
    Line::read(bytes, &mut Style::default()).render()
}

/// Parameters of one sequence that are looked at.
const PARAMETERS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], want: &str) {
        assert_eq!(line(bytes).0, want, "{}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn colours_become_classes() {
        check(b"plain", "plain");
        check(b"\x1b[31mred\x1b[0m plain", "<span class=\"c1\">red</span> plain");
        check(b"\x1b[1;32mok\x1b[m", "<span class=\"c2 b\">ok</span>");
        check(b"\x1b[91;44mx", "<span class=\"c9 g4\">x</span>");
        check(b"\x1b[38;5;9mx\x1b[39my", "<span class=\"c9\">x</span>y");
        check(b"\x1b[38;2;255;10;10mx", "<span class=\"c9\">x</span>");
        check(b"\x1b[38:5:2mx", "<span class=\"c2\">x</span>");
        check(b"\x1b[7mx\x1b[27my", "<span class=\"inv\">x</span>y");
    }

    #[test]
    fn what_a_builder_writes_is_text() {
        check(b"<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;");
        check(b"\x1b[31m\"><img src=x onerror=y>", "<span class=\"c1\">&quot;&gt;&lt;img src=x onerror=y&gt;</span>");
        check(b"a&amp;\xff\xfe", "a&amp;amp;\u{fffd}\u{fffd}");
    }

    #[test]
    fn every_other_sequence_is_dropped() {
        for bytes in [
            &b"\x1b[2J\x1b[1;1Hx"[..],
            b"\x1b]0;title\x07x",
            b"\x1b]8;;https://evil.example\x1b\\x\x1b]8;;\x1b\\",
            b"\x1bP1$r0m\x1b\\x",
            b"\x1b(Bx",
            b"\x1b[?25lx\x1b[?25h",
            b"\x1b[>0;1mx",
            b"\x00\x01\x7fx\x0b",
            b"\xc2\x9b31Kx",
            b"x\x1b",
            b"x\x1b[",
            b"x\x1b[31",
            b"x\x1b]0;without an end",
        ] {
            check(bytes, "x");
        }
        check("a\u{202e}b".as_bytes(), "a\u{fffd}b");
    }

    #[test]
    fn a_carriage_return_overwrites_the_line() {
        check(b" 10%\r 20%\r100%\r", "100%");
        check(b"ab\x08c", "ac");
    }

    #[test]
    fn no_parameter_is_too_large_or_one_too_many() {
        check(b"\x1b[99999999999999999999mx", "x");
        let many = [b"\x1b[".to_vec(), b"1;".repeat(100_000), b"mx".to_vec()].concat();
        check(&many, "<span class=\"b\">x</span>");
    }

    #[test]
    fn a_style_goes_on_in_the_next_piece() {
        let mut style = Style::default();
        Line::read(b"\x1b[1;35mfrom here", &mut style);
        assert_eq!(Style::of_code(style.code()), style);
        assert_eq!(Line::read(b"on", &mut Style::of_code(style.code())).render().0, "<span class=\"c5 b\">on</span>");
        for code in [u32::MAX, 17, 17 << 8, 32 << 16] {
            assert_eq!(Style::of_code(code), Style::default(), "{code}");
        }
    }

    #[test]
    fn what_is_searched_for_is_marked_and_the_rest_is_text() {
        let line = Line::read(b"<b>Error</b> error", &mut Style::default());
        assert_eq!(line.marked("eRRor").0, "&lt;b&gt;<mark>Error</mark>&lt;/b&gt; <mark>error</mark>");
        assert_eq!(line.marked("").0, "&lt;b&gt;Error&lt;/b&gt; error");
        assert_eq!(Line::read("ÄÖ error".as_bytes(), &mut Style::default()).marked("error").0, "ÄÖ <mark>error</mark>");
    }
}
