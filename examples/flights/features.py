"""The features of the flights example: what is known before a flight leaves New York.

`featurestore apply` registers every definition that it finds in this module; `data.py` makes the
files that the sources name.
"""

from datetime import timedelta

import featurestore as fs

airport = fs.Entity("airport", join_keys={"airport": fs.String}, description="FAA code")
aircraft = fs.Entity("aircraft", join_keys={"tailnum": fs.String}, description="Tail number")
carrier = fs.Entity("carrier", join_keys={"carrier": fs.String}, description="Two-letter code")

weather = fs.FeatureView(
    "weather",
    entities=[airport],
    fields=[
        fs.Field("temperature", fs.Float64, description="°F"),
        fs.Field("humidity", fs.Float64, description="%"),
        fs.Field("wind_speed", fs.Float64, description="mph"),
        fs.Field("wind_gust", fs.Float64, description="mph; null in steady wind"),
        fs.Field("precipitation", fs.Float64, description="inches within the hour"),
        fs.Field("pressure", fs.Float64, description="mbar at sea level"),
        fs.Field("visibility", fs.Float64, description="miles"),
        fs.Field("observed_at", fs.Timestamp),
    ],
    timestamp_field="event_timestamp",
    # Yesterday's weather says nothing: null is better. In training that bounds a gap in the
    # reports; online, in a year that is not 2013, it makes the weather OUTSIDE_MAX_AGE until
    # somebody pushes a fresh report.
    ttl=timedelta(hours=3),
    source=fs.ParquetSource("data/weather.parquet"),
    description="Hourly weather at the three airports of New York",
)

# Delays have no ttl: an aircraft that was last seen a week ago is best described by what was seen
# then. How long ago that is, the model can tell from the timestamps.
aircraft_delays = fs.FeatureView(
    "aircraft_delays",
    entities=[aircraft],
    fields=[
        fs.Field("last_dep_delay", fs.Int32, description="minutes"),
        fs.Field("last_arr_delay", fs.Int32, description="minutes"),
        fs.Field("mean_arr_delay_3", fs.Float64, description="minutes, last 3 flights"),
        fs.Field("mean_arr_delay_10", fs.Float64, description="minutes, last 10 flights"),
        fs.Field("last_arrival_at", fs.Timestamp),
    ],
    timestamp_field="event_timestamp",
    source=fs.ParquetSource("data/aircraft_delays.parquet"),
    description="How late each aircraft was, as of its last arrival",
)

carrier_delays = fs.FeatureView(
    "carrier_delays",
    entities=[carrier],
    fields=[
        fs.Field("mean_arr_delay_20", fs.Float64, description="minutes, last 20 flights"),
        fs.Field("late_share_20", fs.Float64, description="of those arrived, over 15 minutes late"),
        fs.Field("cancelled_share_20", fs.Float64),
        fs.Field("last_report_at", fs.Timestamp),
    ],
    timestamp_field="event_timestamp",
    source=fs.ParquetSource("data/carrier_delays.parquet"),
    description="How late each carrier was, as of its last flight out of New York",
)

arrival_delay = fs.FeatureService(
    "arrival_delay",
    features=[
        # A flight knows its airport as `origin`.
        weather.with_join_key_map({"airport": "origin"}),
        aircraft_delays,
        carrier_delays,
    ],
    description="Will this flight arrive more than 15 minutes late?",
)
