//! The parameters of an EC2 query, each to be taken exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::vpc::{ApiError, ApiResult, Tags};

/// Parameters not yet taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params {
    left: BTreeMap<String, String>,
    dry_run: bool,
}

/// The parameters of a form or query string.
pub(crate) fn decode(form: &str) -> BTreeMap<String, String> {
    form.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_text(key), decode_text(value))
        })
        .collect()
}

fn decode_text(text: &str) -> String {
    percent_decode_str(&text.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

impl Params {
    pub(crate) fn new(all: BTreeMap<String, String>) -> Self {
        let mut params = Self {
            left: all,
            dry_run: false,
        };
        params.left.remove("Action");
        params.left.remove("Version");
        params
    }

    /// An optional parameter.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.left.remove(name)
    }

    /// A required parameter.
    pub(crate) fn required(&mut self, name: &str) -> ApiResult<String> {
        self.text(name)
            .ok_or_else(|| ApiError::missing(&lower_first(name)))
    }

    /// An optional parameter with a parsed value.
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &str) -> ApiResult<Option<T>> {
        self.text(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::invalid_value(format!(
                        "Value ({text}) for parameter {} is invalid.",
                        lower_first(name)
                    ))
                })
            })
            .transpose()
    }

    /// A required parameter with a parsed value.
    pub(crate) fn required_parsed<T: FromStr>(&mut self, name: &str) -> ApiResult<T> {
        self.parsed(name)?
            .ok_or_else(|| ApiError::missing(&lower_first(name)))
    }

    /// The numbers N for which there is a parameter `name.N` or `name.N.something`.
    pub(crate) fn indices(&self, name: &str) -> Vec<u32> {
        let numbers: BTreeSet<u32> = self
            .left
            .keys()
            .filter_map(|key| {
                key.strip_prefix(name)?
                    .strip_prefix('.')?
                    .split('.')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        numbers.into_iter().collect()
    }

    /// A list of texts.
    pub(crate) fn texts(&mut self, name: &str) -> Vec<String> {
        self.indices(name)
            .into_iter()
            .filter_map(|index| self.text(&format!("{name}.{index}")))
            .collect()
    }

    /// A list of parsed values.
    pub(crate) fn all_parsed<T: FromStr>(&mut self, name: &str) -> ApiResult<Vec<T>> {
        self.parse_items(name, "")
    }

    /// A list of structures with one member.
    pub(crate) fn members<T: FromStr>(&mut self, name: &str, member: &str) -> ApiResult<Vec<T>> {
        self.parse_items(name, &format!(".{member}"))
    }

    fn parse_items<T: FromStr>(&mut self, name: &str, suffix: &str) -> ApiResult<Vec<T>> {
        let mut items = Vec::new();
        for index in self.indices(name) {
            items.extend(self.parsed(&format!("{name}.{index}{suffix}"))?);
        }
        Ok(items)
    }

    /// Tags under `prefix.N.Key` and `prefix.N.Value`, checked by EC2's rules.
    pub(crate) fn tags(&mut self, prefix: &str) -> ApiResult<Tags> {
        let mut tags = Tags::new();
        for index in self.indices(prefix) {
            let key = self.required(&format!("{prefix}.{index}.Key"))?;
            let value = self.text(&format!("{prefix}.{index}.Value")).unwrap_or_default();
            check_tag(&key, &value)?;
            if tags.insert(key.clone(), value).is_some() {
                return Err(ApiError::invalid_value(format!(
                    "Duplicate tag key '{key}' specified."
                )));
            }
        }
        Ok(tags)
    }

    /// Tags of `TagSpecification.N` for one type of resource.
    pub(crate) fn tag_specification(&mut self, resource_type: &str) -> ApiResult<Tags> {
        let mut tags = Tags::new();
        for index in self.indices("TagSpecification") {
            let prefix = format!("TagSpecification.{index}");
            let kind = self.required(&format!("{prefix}.ResourceType"))?;
            if kind != resource_type {
                return Err(ApiError::invalid_value(format!(
                    "'{kind}' is not a valid taggable resource type for this operation."
                )));
            }
            tags.extend(self.tags(&format!("{prefix}.Tag"))?);
        }
        Ok(tags)
    }

    /// Everything was taken: an unknown parameter is EC2's error, and a dry run ends here.
    pub(crate) fn finish(mut self) -> ApiResult<()> {
        self.dry_run = self.parsed("DryRun")?.unwrap_or(false);
        if let Some(unknown) = self.left.keys().next() {
            return Err(ApiError::new(
                "UnknownParameter",
                format!("The parameter {unknown} is not recognized"),
            ));
        }
        if self.dry_run {
            return Err(ApiError::new(
                "DryRunOperation",
                "Request would have succeeded, but DryRun flag is set.",
            ));
        }
        Ok(())
    }
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
fn check_tag(key: &str, value: &str) -> ApiResult<()> {
    if key.to_ascii_lowercase().starts_with("aws:") {
        return Err(ApiError::invalid_value(
            "Tag keys starting with 'aws:' are reserved for internal use",
        ));
    }
    if key.is_empty() || key.chars().count() > 128 {
        return Err(ApiError::invalid_value(
            "Tag key exceeds the maximum length of 128 characters or is empty",
        ));
    }
    if value.chars().count() > 256 {
        return Err(ApiError::invalid_value(
            "Tag value exceeds the maximum length of 256 characters",
        ));
    }
    Ok(())
}

/// EC2 names parameters in messages with a small first letter.
pub(crate) fn lower_first(name: &str) -> String {
    let mut symbols = name.chars();
    symbols
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(symbols).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_leftovers() {
        let form = "Action=X&Version=1&Id.2=b&Id.1=a%2Fa&Tag.1.Key=k&Tag.1.Value=v+w&Odd=1";
        let mut params = Params::new(decode(form));
        assert_eq!(params.texts("Id"), ["a/a", "b"]);
        assert_eq!(params.tags("Tag").unwrap()["k"], "v w");
        let error = params.finish().unwrap_err();
        assert_eq!(
            error.to_string(),
            "UnknownParameter: The parameter Odd is not recognized"
        );
    }

    #[test]
    fn dry_runs_and_required_ones() {
        let mut params = Params::new(decode("DryRun=true"));
        assert_eq!(
            params.required("SubnetId").unwrap_err().message,
            "The request must contain the parameter subnetId"
        );
        assert_eq!(params.finish().unwrap_err().status, 412);
    }
}
