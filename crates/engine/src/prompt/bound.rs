//! Bounds on what a template can build.
//!
//! `minijinja` charges fuel for instructions and for what they make, with two gaps that a hostile template can use.
//! Lists are concatenated and sliced without being made, so one that is added to itself again and again is huge when it
//! is made at last, all at once. And values nested deeply, loops over lists within lists or lazy parts of lazy parts,
//! need the stack when they are dropped, compared or written.
//!
//! Neither has a hook, so the source is changed before it is compiled: every term of a sum passes through a filter that
//! makes its list, charged, and every value that a variable takes through one that does the same all the way down and
//! limits the depth. What an expression can pile up in one go is bounded by the length of the source, and has room on
//! the stack of [`with_stack`].

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The filter for the terms of a sum.
const TERM: &str = "__term";
/// The filter for what a variable takes.
const VALUE: &str = "__value";
/// The longest list that a term or a variable can be.
const MAX_ITEMS: usize = 1 << 16;
/// How deeply the value of a variable can be nested. JSON from outside is no deeper than 128.
const MAX_DEPTH: usize = 160;
/// So many items cost one unit of fuel. A list stays in memory at 24 bytes an item, and fuel is 64 bytes a unit.
const ITEMS_PER_FUEL: usize = 4;
/// The most words, literals and symbols of one block. Its expression can be nested as deeply.
const MAX_TOKENS: usize = 4096;
/// The most slices in one block. The length of a slice of slices is found through all of them, again for each.
const MAX_SLICES: usize = 64;
/// Room for expressions and chains of `elif` as deep as the source is long. Pages that are not used take no memory.
const STACK: usize = 256 << 20;

/// Runs `work` where the stack is large enough for whatever a template can do; none if the system has no such thread.
pub(super) fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).ok()?;
        match thread.join() {
            Ok(result) => Some(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Adds the filters, and puts what could go around them in bounds too.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_filter(TERM, |state: &State, value: Value| term(state, value));
    environment.add_filter(VALUE, |state: &State, value: Value| {
        Ok::<_, Error>(plain(state, &value, 0)?.unwrap_or(value))
    });
    // Jinja2 has no such filter.
    environment.remove_filter("chain");
    let sum = Value::from_function(minijinja::filters::sum);
    environment.add_filter(
        "sum",
        move |state: &mut State,
              values: Value,
              attribute: Option<Value>,
              start: Option<Value>,
              options: Kwargs| {
            let named: Option<Value> = options.get("start")?;
            let is_number = |start: &Value| start.is_none() || start.is_number();
            if ![&start, &named].into_iter().flatten().all(is_number) {
                return Err(Error::new(ErrorKind::InvalidOperation, "sum takes numbers"));
            }
            let or_none = |value: Option<Value>| value.unwrap_or(Value::from(()));
            sum.call(state, &[values, or_none(attribute), or_none(start), options.into()])
        },
    );
    let namespace = Value::from_function(minijinja::functions::namespace);
    environment.add_function(
        "namespace",
        move |state: &mut State, map: Option<Value>, values: Kwargs| {
            if let Some(map) = map {
                let plain = plain(state, &map, 0)?.unwrap_or(map);
                return namespace.call(state, &[plain]);
            }
            let mut bounded = Vec::new();
            for name in values.args() {
                let value: Value = values.get(name)?;
                bounded.push((name.to_owned(), plain(state, &value, 0)?.unwrap_or(value)));
            }
            namespace.call(state, &[Kwargs::from_iter(bounded).into()])
        },
    );
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !value.is_tuple()
}

/// The value, and if it is a list, one that is made.
fn term(state: &State, value: Value) -> Result<Value, Error> {
    if !is_list(&value) {
        return Ok(value);
    }
    match value.downcast_object_ref::<Vec<Value>>() {
        Some(items) => {
            charge(state, items.len())?;
            Ok(value)
        }
        None => items(state, &value).map(Value::from),
    }
}

fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() == MAX_ITEMS {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        // An iterator that ran out of fuel gives the error as its last item.
        items.push(item);
    }
    charge(state, items.len())?;
    Ok(items)
}

fn charge(state: &State, items: usize) -> Result<(), Error> {
    if items > MAX_ITEMS {
        return Err(Error::from(ErrorKind::OutOfFuel));
    }
    state.consume_fuel((items / ITEMS_PER_FUEL + 1) as u64)
}

/// The value with every list in it made, or none if that is what it is. Namespaces hold only such values already.
fn plain(state: &State, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if depth > MAX_DEPTH => {
            Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let is_made = value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some();
            let mut items = items(state, value)?;
            let mut has_changed = !is_made;
            for item in &mut items {
                if let Some(plain) = plain(state, item, depth + 1)? {
                    *item = plain;
                    has_changed = true;
                }
            }
            let remake = || match value.is_tuple() {
                true => Value::from(minijinja::value::Tuple::from(items)),
                false => Value::from(items),
            };
            Ok(has_changed.then(remake))
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            let mut has_changed = false;
            // A macro looks like a map, and holds the variables around it, which can hold a macro.
            if is_macro(value) {
                let message = "a macro cannot be the value of a variable";
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            for key in items(state, &Value::from_iter(value.try_iter()?))? {
                let item = value.get_item(&key)?;
                let plain = plain(state, &item, depth + 1)?;
                has_changed |= plain.is_some();
                pairs.push((key, plain.unwrap_or(item)));
            }
            Ok(has_changed.then(|| Value::from_pairs(pairs)))
        }
        _ => Ok(None),
    }
}

/// Whether the value has the attributes of a macro and nothing else.
fn is_macro(value: &Value) -> bool {
    let is_there = |name| value.get_attr(name).is_ok_and(|attribute| !attribute.is_undefined());
    value.len() == Some(3)
        && is_there("name")
        && is_there("arguments")
        && value.get_attr("caller").is_ok_and(|caller| caller.kind() == ValueKind::Bool)
}

/// A piece of an expression.
#[derive(Clone, Copy, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    /// A number, a string, or the name of an attribute or a filter.
    Literal,
    Symbol(char),
    /// `==`, `!=`, `<=`, `>=`: what is neither an assignment nor part of a term.
    Comparison,
}

/// A part of an expression between brackets, or all of it.
#[derive(Default)]
struct Level {
    /// The terms of the sum that is being read, each from its first byte to after its last.
    terms: Vec<(usize, usize)>,
    /// The term that is being read.
    term: Option<(usize, usize)>,
    has_plus: bool,
}

/// The source with the filters in place.
///
/// # Errors
/// When a block is longer than templates have use for, which the message says.
pub(super) fn bounded(source: &str) -> Result<String, String> {
    let mut insertions: Vec<(usize, String)> = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        at += found;
        let rest = &source[at..];
        if rest.starts_with("{#") {
            at = rest.find("#}").map_or(source.len(), |end| at + end + 2);
        } else if rest.starts_with("{{") || rest.starts_with("{%") {
            let is_statement = rest.starts_with("{%");
            at = block(source, at + 2, is_statement, &mut insertions).ok_or_else(|| {
                let line = source[..at].matches('\n').count() + 1;
                format!(
                    "a block has more than {MAX_TOKENS} parts or {MAX_SLICES} slices (line {line})"
                )
            })?;
        } else {
            at += 1;
        }
    }
    // Insertions of inner parts come before those of the parts around them.
    insertions.sort_by_key(|(at, _)| *at);
    let mut output = String::with_capacity(source.len() * 2);
    let mut copied = 0;
    for (at, text) in insertions {
        output.push_str(&source[copied..at]);
        output.push_str(&text);
        copied = at;
    }
    Ok(output + &source[copied..])
}

/// Reads a block from after its opening, and returns where it ends; none if it has too many parts. What is not valid is
/// left for the parser to refuse.
fn block(
    source: &str,
    start: usize,
    is_statement: bool,
    insertions: &mut Vec<(usize, String)>,
) -> Option<usize> {
    let bytes = source.as_bytes();
    let closing: &[u8] = if is_statement { b"%}" } else { b"}}" };
    let mut at = start + usize::from(matches!(bytes.get(start), Some(b'-' | b'+')));
    let mut levels = vec![Level::default()];
    let mut brackets: Vec<u8> = Vec::new();
    let mut last: Option<Token<'_>> = None;
    let mut statement = None;
    let mut assigned = None;
    let (mut tokens, mut slices) = (0, 0);
    loop {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        let trims = usize::from(matches!(bytes.get(at), Some(b'-' | b'+')));
        let is_end =
            brackets.last() != Some(&b'}') && bytes[at..].get(trims..trims + 2) == Some(closing);
        if is_end || at >= bytes.len() {
            close(levels.iter_mut(), insertions);
            if let Some(from) = assigned {
                insertions.push((from, "(".to_owned()));
                insertions.push((at, format!(")|{VALUE}")));
            }
            let end = (at + trims + 2).min(bytes.len());
            // Until its end, a raw block is text.
            return Some(if statement == Some("raw") { end_of_raw(source, end) } else { end });
        }
        let from = at;
        let token = match token(source, &mut at) {
            // A name after a dot or a bar is no keyword.
            Token::Word(_) if matches!(last, Some(Token::Symbol('.' | '|'))) => Token::Literal,
            token => token,
        };
        tokens += 1;
        slices += usize::from(token == Token::Symbol(':') && brackets.last() == Some(&b']'));
        if tokens > MAX_TOKENS || slices > MAX_SLICES {
            return None;
        }
        let is_first = last.is_none() && is_statement;
        if is_first && let Token::Word(word) = token {
            statement = Some(word);
        }
        let level = levels.last_mut().expect("the outermost level is never left");
        let after_operand = match last {
            Some(Token::Word(word)) => !is_keyword(word),
            Some(Token::Literal | Token::Symbol(')' | ']' | '}')) => true,
            _ => false,
        };
        let is_boundary = is_first
            || match token {
                Token::Comparison | Token::Symbol(',' | ':' | '=' | '<' | '>') => true,
                // `is not` is part of a term.
                Token::Word(word) => {
                    is_keyword(word) && !(word == "not" && last == Some(Token::Word("is")))
                }
                _ => false,
            };
        match token {
            _ if is_boundary => close(std::iter::once(&mut *level), insertions),
            // A plus is never a sign, unlike a minus.
            Token::Symbol(operator @ ('+' | '-')) if operator == '+' || after_operand => {
                level.terms.extend(level.term.take());
                level.has_plus |= operator == '+';
            }
            _ => level.term = Some((level.term.map_or(from, |(start, _)| start), at)),
        }
        match token {
            Token::Symbol('=')
                if statement == Some("set") && levels.len() == 1 && assigned.is_none() =>
            {
                assigned = Some(at);
            }
            Token::Symbol(open @ ('(' | '[' | '{')) => {
                brackets.push(match open {
                    '(' => b')',
                    '[' => b']',
                    _ => b'}',
                });
                levels.push(Level::default());
            }
            Token::Symbol(')' | ']' | '}') if levels.len() > 1 => {
                // The bracket is the end of the term around it, not of a term within.
                let mut inner = levels.pop().unwrap_or_default();
                brackets.pop();
                inner.term = inner.term.map(|(start, _)| (start, previous_end(source, from)));
                inner.term = inner.term.filter(|(start, end)| start < end);
                close(std::iter::once(&mut inner), insertions);
                if let Some(Level { term: Some((_, end)), .. }) = levels.last_mut() {
                    *end = at;
                }
            }
            _ => {}
        }
        last = Some(token);
    }
}

/// Where the text before `at` ends, less the whitespace.
fn previous_end(source: &str, at: usize) -> usize {
    source[..at].trim_end().len()
}

/// Puts the filters around the terms of sums that are complete.
fn close<'l>(levels: impl Iterator<Item = &'l mut Level>, insertions: &mut Vec<(usize, String)>) {
    for level in levels {
        let Level { mut terms, term, has_plus } = std::mem::take(level);
        terms.extend(term);
        if has_plus {
            for (start, end) in terms {
                insertions.push((start, "(".to_owned()));
                insertions.push((end, format!(")|{TERM}")));
            }
        }
    }
}

/// The next token, which is not whitespace.
fn token<'a>(source: &'a str, at: &mut usize) -> Token<'a> {
    let rest = &source[*at..];
    let first = rest.chars().next().unwrap_or(' ');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if first == '\'' || first == '"' {
        let mut is_escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let is_end = *c == first && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            is_end
        });
        *at = end.map_or(source.len(), |(end, _)| *at + end + 1);
        return Token::Literal;
    }
    if is_word(first) {
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        *at += length;
        let is_number = first.is_ascii_digit();
        // The sign of an exponent.
        let mut after = rest[length..].chars();
        if is_number
            && rest[..length].ends_with(['e', 'E'])
            && matches!(after.next(), Some('+' | '-'))
            && after.next().is_some_and(|c| c.is_ascii_digit())
        {
            *at += 1;
        }
        return if is_number { Token::Literal } else { Token::Word(&rest[..length]) };
    }
    if ["==", "!=", "<=", ">="].iter().any(|operator| rest.starts_with(operator)) {
        *at += 2;
        return Token::Comparison;
    }
    *at += first.len_utf8();
    Token::Symbol(first)
}

/// Words that end a term, whatever is around them.
fn is_keyword(word: &str) -> bool {
    matches!(word, "if" | "else" | "and" | "or" | "not" | "in" | "recursive")
}

/// Where the block after `{% raw %}` ends.
fn end_of_raw(source: &str, start: usize) -> usize {
    let mut at = start;
    while let Some(found) = source[at..].find("{%") {
        at += found + 2;
        let name = source[at..].trim_start_matches(['-', '+']).trim_start();
        if name.starts_with("endraw") {
            return at;
        }
    }
    source.len()
}
