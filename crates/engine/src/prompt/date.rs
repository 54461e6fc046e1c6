//! `strftime_now`: the date, as some templates write it into the system message.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in UTC.
struct Date {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Date {
    fn new(time: SystemTime) -> Self {
        // Times before 1970 are no time anybody renders a prompt at.
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64);
        let days = seconds / 86_400;
        let of_day = seconds % 86_400;
        // Years start in March here, so that the leap day is the last of its year and of its 400 years.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // January and February are the end of the year that starts in March.
        let day_of_year = match month {
            1 | 2 => day_from_march - 305,
            _ => day_from_march + 60 + i64::from(is_leap),
        };
        Self {
            year,
            month: month as usize,
            day,
            weekday: ((days + 4) % 7) as usize,
            day_of_year,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
}

/// Formats a moment in UTC as `datetime.strftime` does in the C locale; a directive that it does not know is
/// the error.
pub(super) fn strftime(time: SystemTime, format: &str) -> Result<String, String> {
    let date = Date::new(time);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next().unwrap_or('%');
        let is_unpadded = directive == '-';
        if is_unpadded {
            directive = characters.next().unwrap_or('-');
        }
        let hour12 = (date.hour + 11) % 12 + 1;
        let (value, width) = match directive {
            'Y' => (date.year, 4),
            'y' => (date.year % 100, 2),
            'm' => (date.month as i64, 2),
            'd' => (date.day, 2),
            'H' => (date.hour, 2),
            'I' => (hour12, 2),
            'M' => (date.minute, 2),
            'S' => (date.second, 2),
            'j' => (date.day_of_year, 3),
            'u' => ((date.weekday as i64 + 6) % 7 + 1, 1),
            'w' => (date.weekday as i64, 1),
            _ => {
                let name = match directive {
                    'B' => MONTHS[date.month - 1],
                    'b' | 'h' => &MONTHS[date.month - 1][..3],
                    'A' => DAYS[date.weekday],
                    'a' => &DAYS[date.weekday][..3],
                    'p' => ["AM", "PM"][usize::from(date.hour >= 12)],
                    '%' => "%",
                    'e' => {
                        text += &format!("{:2}", date.day);
                        continue;
                    }
                    'F' => {
                        text += &strftime(time, "%Y-%m-%d")?;
                        continue;
                    }
                    'T' => {
                        text += &strftime(time, "%H:%M:%S")?;
                        continue;
                    }
                    _ => return Err(format!("strftime_now does not know %{directive}")),
                };
                text += name;
                continue;
            }
        };
        let width = if is_unpadded { 0 } else { width };
        // Writing to a string does not fail.
        let _ = write!(text, "{value:0width$}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// `TZ=UTC python3 -c 'import datetime as d; print(d.datetime.fromtimestamp(N, d.timezone.utc).strftime(F))'`
    #[test]
    fn dates_are_those_of_python() {
        const FORMAT: &str = "%Y-%m-%d %d %B %b %A %a %H:%M:%S %I %p %j %y %-d %e %u %w %%";
        for (seconds, expected) in [
            (0, "1970-01-01 01 January Jan Thursday Thu 00:00:00 12 AM 001 70 1  1 4 4 %"),
            (
                951_782_400,
                "2000-02-29 29 February Feb Tuesday Tue 00:00:00 12 AM 060 00 29 29 2 2 %",
            ),
            (951_868_800, "2000-03-01 01 March Mar Wednesday Wed 00:00:00 12 AM 061 00 1  1 3 3 %"),
            (
                1_735_689_599,
                "2024-12-31 31 December Dec Tuesday Tue 23:59:59 11 PM 366 24 31 31 2 2 %",
            ),
            (
                1_763_848_740,
                "2025-11-22 22 November Nov Saturday Sat 21:59:00 09 PM 326 25 22 22 6 6 %",
            ),
            (4_107_542_400, "2100-03-01 01 March Mar Monday Mon 00:00:00 12 AM 060 00 1  1 1 1 %"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime(time, FORMAT).as_deref(), Ok(expected));
        }
        assert!(strftime(UNIX_EPOCH, "%Q").is_err());
    }
}
