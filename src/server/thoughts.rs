//! What a model thought before it called a tool, for clients that give back the call alone.
//!
//! A model that gets the result of a call goes on from its reasoning. OpenAI's chat completions have no field for that, so
//! most clients drop it; it is put back by the name of the call. The format of the model says how long it is shown: that of
//! gpt-oss until the answer that follows the calls.

use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// The most bytes of all reasoning that is remembered.
const MOST_BYTES: usize = 4 << 20;

/// Reasoning by the names of the calls after it.
#[derive(Debug, Default)]
pub struct Thoughts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_call: HashMap<String, Arc<str>>,
    /// In the order in which they came.
    all: VecDeque<(Vec<String>, Arc<str>)>,
    bytes: usize,
}

impl Thoughts {
    /// Remembers what led to calls.
    pub fn remember(&self, calls: Vec<String>, reasoning: &str) {
        if calls.is_empty() || reasoning.is_empty() || reasoning.len() > MOST_BYTES {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Known { by_call, all, bytes } = &mut *known;
        let reasoning: Arc<str> = reasoning.into();
        *bytes += reasoning.len();
        by_call.extend(calls.iter().map(|call| (call.clone(), Arc::clone(&reasoning))));
        all.push_back((calls, reasoning));
        while *bytes > MOST_BYTES
            && let Some((calls, reasoning)) = all.pop_front()
        {
            *bytes -= reasoning.len();
            calls.iter().for_each(|call| {
                by_call.remove(call);
            });
        }
    }

    /// Puts the reasoning into those of `messages` that call tools and have none.
    pub fn recall(&self, messages: &mut [Value]) {
        let known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for message in messages {
            let has_own =
                message["reasoning_content"].as_str().is_some_and(|text| !text.is_empty());
            let calls = message["tool_calls"].as_array();
            let ids = calls.into_iter().flatten().filter_map(|call| call["id"].as_str());
            let thought = ids.filter_map(|id| known.by_call.get(suffix(id))).next();
            if let Some(thought) = thought
                && !has_own
            {
                message["reasoning_content"] = json!(**thought);
            }
        }
    }
}

/// The name of a call without what an API puts before it.
fn suffix(id: &str) -> &str {
    id.rsplit_once('_').map_or(id, |(_, suffix)| suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str) -> Value {
        json!({"role": "assistant", "content": "", "tool_calls": [{"id": id}]})
    }

    #[test]
    fn reasoning_comes_back_where_it_is_missing() {
        let thoughts = Thoughts::default();
        thoughts.remember(vec!["1a".to_string(), "2b".to_string()], "So it is.");
        let mut own = call("call_1a");
        own["reasoning_content"] = json!("My own.");
        let mut messages =
            [call("call_1a"), call("toolu_2b"), call("call_3c"), own, json!({"role": "user"})];
        thoughts.recall(&mut messages);
        assert_eq!(messages[0]["reasoning_content"], "So it is.");
        assert_eq!(messages[1]["reasoning_content"], "So it is.");
        assert_eq!(messages[2].get("reasoning_content"), None);
        assert_eq!(messages[3]["reasoning_content"], "My own.");
        assert_eq!(messages[4], json!({"role": "user"}));
    }

    #[test]
    fn what_came_first_is_forgotten_first() {
        let thoughts = Thoughts::default();
        let long = "x".repeat(MOST_BYTES / 2 - 1);
        for id in ["a", "b", "c"] {
            thoughts.remember(vec![id.to_string()], &long);
        }
        let mut messages = [call("a"), call("b"), call("c")];
        thoughts.recall(&mut messages);
        let has = messages.map(|message| message.get("reasoning_content").is_some());
        assert_eq!(has, [false, true, true]);
    }
}
