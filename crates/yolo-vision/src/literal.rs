//! Python literals, the notation of Ultralytics' ONNX metadata (`{0: 'person', 1: "driver's seat"}`): not JSON.

/// Longest text that is looked at, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting.
const DEPTH_MAX: usize = 16;

/// A value as Python's `ast.literal_eval` would read it; tuples are lists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    Dict(Vec<(Self, Self)>),
}

impl Literal {
    pub(crate) fn as_index(&self) -> Option<usize> {
        match self {
            Self::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// Parses one literal and nothing after it; `None` for anything else, however hostile.
pub(crate) fn parse(text: &str) -> Option<Literal> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut parser = Parser { rest: text };
    let value = parser.value(0)?;
    parser.skip_space();
    parser.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Literal> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.skip_space();
        match self.rest.chars().next()? {
            '{' => self.dict(depth),
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '\'' | '"' => self.text().map(Literal::Text),
            _ => self.word(),
        }
    }

    fn dict(&mut self, depth: usize) -> Option<Literal> {
        let mut entries = Vec::new();
        self.eat('{');
        while !self.eat('}') {
            let key = self.value(depth + 1)?;
            if !self.eat(':') {
                return None;
            }
            entries.push((key, self.value(depth + 1)?));
            if !self.eat(',') {
                return self.eat('}').then_some(Literal::Dict(entries));
            }
        }
        Some(Literal::Dict(entries))
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<Literal> {
        let mut items = Vec::new();
        self.eat(open);
        while !self.eat(close) {
            items.push(self.value(depth + 1)?);
            if !self.eat(',') {
                return self.eat(close).then_some(Literal::List(items));
            }
        }
        Some(Literal::List(items))
    }

    fn text(&mut self) -> Option<String> {
        let mut chars = self.rest.chars();
        let quote = chars.next()?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                '\\' => text.push(escape(&mut chars)?),
                end if end == quote => break,
                plain => text.push(plain),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }

    fn word(&mut self) -> Option<Literal> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let (word, rest) = self.rest.split_at_checked(end.unwrap_or(self.rest.len()))?;
        self.rest = rest;
        match word {
            "None" => Some(Literal::None),
            "True" => Some(Literal::Bool(true)),
            "False" => Some(Literal::Bool(false)),
            _ => word.parse().map(Literal::Int).or_else(|_| word.parse().map(Literal::Float)).ok(),
        }
    }
}

/// The character after a backslash: `\n`, `\t`, `\r`, `\xhh`, `\uhhhh`, `\Uhhhhhhhh`, or itself.
fn escape(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let digits = match chars.next()? {
        'n' => return Some('\n'),
        't' => return Some('\t'),
        'r' => return Some('\r'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        same => return Some(same),
    };
    let (hex, rest) = chars.as_str().split_at_checked(digits)?;
    *chars = rest.chars();
    char::from_u32(u32::from_str_radix(hex, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_both_quotes_and_escapes_are_read() {
        let parsed = parse(r#"{0: 'person', 1: "driver's seat", 2: 'caf\xe9 \u2713', 3: 'a\\b',}"#);
        let names = ["person", "driver's seat", "café ✓", "a\\b"];
        let expected = names.iter().zip(0..).map(|(name, i)| (Literal::Int(i), Literal::Text((*name).to_owned())));
        assert_eq!(parsed, Some(Literal::Dict(expected.collect())));
    }

    #[test]
    fn numbers_constants_and_tuples_are_read() {
        let parsed = parse(" (1, -2, 0.5, 1e-3, True, None, []) ");
        assert_eq!(
            parsed,
            Some(Literal::List(vec![
                Literal::Int(1),
                Literal::Int(-2),
                Literal::Float(0.5),
                Literal::Float(1e-3),
                Literal::Bool(true),
                Literal::None,
                Literal::List(vec![]),
            ]))
        );
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(DEPTH_MAX + 1)).is_some());
        assert!(parse(&nested(DEPTH_MAX + 2)).is_none());
        assert!(parse(&"[".repeat(100_000)).is_none());
    }

    #[test]
    fn no_prefix_of_a_document_is_read_as_a_whole_one() {
        let text = r#"{0: 'a', 1: ["b\x41", (1.5, None)], 'k': {2: False}}"#;
        for (end, _) in text.char_indices() {
            assert_eq!(parse(&text[..end]), None, "prefix {:?}", &text[..end]);
        }
        assert!(parse(text).is_some());
    }
}
