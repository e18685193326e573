//! Reading one line of EDN.

use crate::history::form::Form;

/// Forms inside forms, at most: deeper ones are refused rather than overflow the stack.
const MAX_DEPTH: usize = 64;

/// The one form of a line, `None` if the line is empty or a comment. The error says what is wrong and where.
pub fn parse(line: &str) -> Result<Option<Form>, String> {
    let mut reader = Reader { line, at: 0 };
    reader.skip_blank();
    if reader.peek().is_none() {
        return Ok(None);
    }
    let form = reader.form(0)?;
    reader.skip_blank();
    match reader.peek() {
        None => Ok(Some(form)),
        Some(letter) => Err(reader.problem(&format!("{letter:?} after the end of the operation"))),
    }
}

struct Reader<'a> {
    line: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.line[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        Some(letter)
    }

    fn problem(&self, what: &str) -> String {
        format!("no EDN at column {}: {what}", self.line[..self.at].chars().count() + 1)
    }

    /// Passes over white space, commas and a comment.
    fn skip_blank(&mut self) {
        while let Some(letter) = self.peek() {
            if letter == ';' {
                self.at = self.line.len();
            } else if letter.is_whitespace() || letter == ',' {
                self.take();
            } else {
                break;
            }
        }
    }

    fn form(&mut self, depth: usize) -> Result<Form, String> {
        if depth > MAX_DEPTH {
            return Err(self.problem(&format!("forms are nested deeper than {MAX_DEPTH}")));
        }
        self.skip_blank();
        match self.peek() {
            None => Err(self.problem("the line ends where a form should begin")),
            Some('[') => self.forms(']', depth).map(Form::List),
            Some('(') => self.forms(')', depth).map(Form::List),
            Some('{') => self.map(depth),
            Some('"') => self.string().map(Form::Str),
            Some('#') => self.tagged(depth),
            Some(':') => {
                self.take();
                let name = self.word().to_owned();
                if name.is_empty() {
                    return Err(self.problem("a keyword needs a name"));
                }
                Ok(Form::Keyword(name))
            }
            Some(letter) if letter == '-' || letter == '+' || letter.is_ascii_digit() => self.number(),
            Some(_) => self.symbol(),
        }
    }

    /// Forms up to `close`; the opening bracket is next.
    fn forms(&mut self, close: char, depth: usize) -> Result<Vec<Form>, String> {
        self.take();
        let mut forms = Vec::new();
        loop {
            self.skip_blank();
            match self.peek() {
                Some(letter) if letter == close => {
                    self.take();
                    return Ok(forms);
                }
                None => return Err(self.problem(&format!("the line ends before {close:?}"))),
                Some(_) => forms.push(self.form(depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Form, String> {
        let mut forms = self.forms('}', depth)?.into_iter();
        let mut entries = Vec::with_capacity(forms.len() / 2);
        while let Some(key) = forms.next() {
            let value = forms.next().ok_or_else(|| self.problem("a map has a key without a value"))?;
            entries.push((key, value));
        }
        Ok(Form::Map(entries))
    }

    /// A set, or a form with a tag, which is dropped.
    fn tagged(&mut self, depth: usize) -> Result<Form, String> {
        self.take();
        if self.peek() == Some('{') {
            return self.forms('}', depth).map(Form::List);
        }
        if self.word().is_empty() {
            return Err(self.problem("'#' must begin a set or a tag"));
        }
        self.form(depth + 1)
    }

    fn string(&mut self) -> Result<String, String> {
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                None => return Err(self.problem("the line ends inside a string")),
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some(letter) => text.push(letter),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        match self.take() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some(letter @ ('"' | '\\')) => Ok(letter),
            Some('u') => {
                let digits = self.line.get(self.at..self.at + 4).unwrap_or_default();
                let letter = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
                self.at += if letter.is_some() { 4 } else { 0 };
                letter.ok_or_else(|| self.problem("\\u needs four hexadecimal digits of a character"))
            }
            _ => Err(self.problem("a string has an unknown escape")),
        }
    }

    fn word(&mut self) -> &str {
        let begin = self.at;
        while self.peek().is_some_and(|c| !c.is_whitespace() && !"()[]{}\",;".contains(c)) {
            self.take();
        }
        &self.line[begin..self.at]
    }

    fn number(&mut self) -> Result<Form, String> {
        let word = self.word();
        match word.strip_suffix('N').unwrap_or(word).parse() {
            Ok(number) => Ok(Form::Int(number)),
            Err(_) if word == "-" || word == "+" => Ok(Form::keyword(word)),
            Err(_) => {
                let problem = format!("{word:?} is not a whole number");
                Err(self.problem(&problem))
            }
        }
    }

    /// `nil`, a boolean, or another symbol, which counts as a keyword.
    fn symbol(&mut self) -> Result<Form, String> {
        match self.word() {
            "" => Err(self.problem("a closing bracket without an opening one")),
            "nil" => Ok(Form::Nil),
            "true" => Ok(Form::Bool(true)),
            "false" => Ok(Form::Bool(false)),
            other => Ok(Form::keyword(other)),
        }
    }
}
