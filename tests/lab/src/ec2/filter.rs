//! Filters and pages of describes.

use crate::faults::glob;
use crate::vpc::{ApiError, ApiResult, Tags};

use super::params::Params;

/// Values that one call may have in all its filters.
const MOST_VALUES: usize = 200;

/// A filter: any of its values must match, `*` and `?` being wild.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    name: String,
    values: Vec<String>,
}

/// All filters of a request.
pub(crate) fn take(params: &mut Params) -> ApiResult<Vec<Filter>> {
    let mut filters = Vec::new();
    for index in params.indices("Filter") {
        let name = params.required(&format!("Filter.{index}.Name"))?;
        let values = params.texts(&format!("Filter.{index}.Value"));
        if values.is_empty() {
            return Err(ApiError::missing("filterValue"));
        }
        filters.push(Filter { name, values });
    }
    if filters.iter().map(|filter| filter.values.len()).sum::<usize>() > MOST_VALUES {
        return Err(ApiError::new(
            "FilterLimitExceeded",
            format!("The maximum number of filter values specified on a single call is {MOST_VALUES}"),
        ));
    }
    Ok(filters)
}

/// What a resource says to a filter.
pub(crate) enum Field {
    /// These values.
    Values(Vec<String>),
    /// There is no such filter.
    Unknown,
}

impl Field {
    pub(crate) fn one(value: impl ToString) -> Self {
        Self::many([value])
    }

    pub(crate) fn many<T: ToString>(values: impl IntoIterator<Item = T>) -> Self {
        Self::Values(values.into_iter().map(|value| value.to_string()).collect())
    }
}

/// Whether a resource with these fields and tags passes all filters.
pub(crate) fn passes(filters: &[Filter], tags: &Tags, field: impl Fn(&str) -> Field) -> ApiResult<bool> {
    for filter in filters {
        let found = match filter.name.strip_prefix("tag:") {
            Some(key) => tags.get(key).cloned().into_iter().collect(),
            None if filter.name == "tag-key" => tags.keys().cloned().collect(),
            None => match field(&filter.name) {
                Field::Values(values) => values,
                Field::Unknown => return Err(unknown(&filter.name)),
            },
        };
        let matches = |value: &String| filter.values.iter().any(|pattern| glob(pattern, value));
        if !found.iter().any(matches) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Complains about unknown filters even where no resource is asked.
pub(crate) fn check(filters: &[Filter], known: impl Fn(&str) -> bool) -> ApiResult<()> {
    filters
        .iter()
        .map(|filter| filter.name.as_str())
        .find(|name| !name.starts_with("tag:") && *name != "tag-key" && !known(name))
        .map_or(Ok(()), |name| Err(unknown(name)))
}

fn unknown(name: &str) -> ApiError {
    ApiError::invalid_value(format!("The filter '{name}' is invalid"))
}

/// How a describe is to be cut into pages.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    size: Option<usize>,
    after: Option<String>,
}

impl Page {
    /// Takes `MaxResults` and `NextToken`. Pages and ids exclude each other.
    pub(crate) fn take(params: &mut Params, largest: usize, ids: &str, has_ids: bool) -> ApiResult<Self> {
        let size: Option<usize> = params.parsed("MaxResults")?;
        if let Some(size) = size {
            if size < 5 {
                return Err(ApiError::invalid_value(format!(
                    "Value ( {size} ) for parameter maxResults is invalid. Expecting a value greater than 5."
                )));
            }
            if size > largest {
                return Err(ApiError::invalid_value(format!(
                    "Value ( {size} ) for parameter maxResults is invalid. Expecting a value less than or equal to \
                     {largest}."
                )));
            }
            if has_ids {
                return Err(ApiError::combination(format!(
                    "The parameter {ids} cannot be used with the parameter maxResults"
                )));
            }
        }
        let after = params
            .text("NextToken")
            .map(|token| read_token(&token))
            .transpose()?;
        Ok(Self { size, after })
    }

    /// Whether no page size was given, nor a token.
    pub(crate) fn is_whole(&self) -> bool {
        self.size.is_none() && self.after.is_none()
    }

    /// The same with another size.
    pub(crate) fn of_at_most(self, size: usize) -> Self {
        Self {
            size: Some(size),
            ..self
        }
    }

    /// The items of this page, and the token of the next. `items` must be sorted by key.
    pub(crate) fn cut<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
        let mut rest = items.into_iter().filter(|item| {
            self.after
                .as_ref()
                .is_none_or(|after| key(item).as_str() > after.as_str())
        });
        // What EC2 sends at most when nobody says.
        let size = self.size.unwrap_or(1000);
        let page: Vec<T> = rest.by_ref().take(size).collect();
        let more = rest.next().is_some();
        let token = page.last().filter(|_| more).map(|last| write_token(&key(last)));
        (page, token)
    }
}

/// The token is the last key in hexadecimal, so that nobody takes it for anything but opaque.
fn write_token(key: &str) -> String {
    key.bytes()
        .fold(String::new(), |token, byte| token + &format!("{byte:02x}"))
}

fn read_token(token: &str) -> ApiResult<String> {
    let digits: Option<Vec<u8>> = token
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    digits
        .filter(|digits| !digits.is_empty())
        .and_then(|digits| String::from_utf8(digits).ok())
        .ok_or_else(|| ApiError::new("InvalidNextToken", format!("The token '{token}' is invalid.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let items: Vec<u32> = (10..23).collect();
        let mut page = Page {
            size: Some(5),
            after: None,
        };
        let mut seen = Vec::new();
        loop {
            let (part, token) = page.cut(items.clone(), ToString::to_string);
            seen.extend(part);
            let Some(token) = token else { break };
            page.after = Some(read_token(&token).unwrap());
        }
        assert_eq!(seen, items);
        assert_eq!(read_token("xyz").unwrap_err().code, "InvalidNextToken");
    }
}
