"""The only spelling of a column name.

A column ends in ``_id`` (external key), ``_idx`` (dense integer), ``_ts`` (UTC timestamp) or says its unit; a count starts
with ``num_``.
"""

# keys
EVENT_ID = "event_id"
ROW_ID = "row_id"
DELIVERY_ID = "delivery_id"
USER_ID = "user_id"
ITEM_ID = "item_id"
USER_IDX = "user_idx"
ITEM_IDX = "item_idx"
FOLD = "fold"
RUN_ID = "run_id"
RUN_DATE = "run_date"
VERSIONS = "versions"

# raw rows (inside ingest)
SOURCE_ROW = "source_row"
MALFORMED = "malformed"
IS_DUPLICATE = "is_duplicate"

# events
EVENT_TYPE = "event_type"
EVENT_TS = "event_ts"
QUANTITY = "quantity"
PRICE = "price"
FILE = "file"
RAW = "raw"
REASONS = "reasons"

# judged events and persons
USE = "use"
VOID_TS = "void_ts"
SESSION_TS = "session_ts"
GAP_SECONDS = "gap_seconds"
IS_REPEAT = "is_repeat"
IS_UNMATCHED = "is_unmatched"
RETURNED_TS = "returned_ts"
FLAGGED_TS = "flagged_ts"
EVIDENCE = "evidence"
OPTED_OUT = "opted_out"
NUM_DAYS = "num_days"
NUM_GAPS = "num_gaps"
EVENTS_A_DAY = "events_a_day"
ITEMS_A_DAY = "items_a_day"
HOURS_A_DAY = "hours_a_day"
GAP_VARIATION = "gap_variation"

# items
CATEGORY = "category"
CATEGORY_PATH = "category_path"
LABEL = "label"
OTHER_PATHS = "other_paths"
UPDATED_TS = "updated_ts"
IN_CATALOGUE = "in_catalogue"
RECOMMENDABLE = "recommendable"

# folds
WEIGHT = "weight"
TOUCHED = "touched"
HOME = "home"
COUNTING = "counting"
NUM_EVENTS = "num_events"
NUM_BUYERS = "num_buyers"
LAST_TS = "last_ts"
CROSS_TOUCHED = "cross_touched"
CROSS_HOME = "cross_home"
BALANCE_WEIGHT = "balance_weight"
NUM_COPIES = "num_copies"
FACTOR = "factor"
SHARE = "share"
BALANCED_EVENTS = "balanced_events"
BALANCED_SHARE = "balanced_share"
EFFECTIVE_EVENTS = "effective_events"
LARGEST_REPEAT = "largest_repeat"

# sequences
SPLIT = "split"
SHARD = "shard"
WINDOW = "window"
TOKEN = "token"
TOKENS = "tokens"
TOKEN_WEIGHTS = "token_weights"
ROW_WEIGHT = "row_weight"

# vectors and candidates
MODEL = "model"
KIND = "kind"
IDX = "idx"
VECTOR = "vector"
SCOPE = "scope"
SOURCE = "source"
SCORE = "score"
RANK = "rank"
EXCLUDED = "excluded"
SEEN = "seen"
CATEGORY_CODE = "category_code"

# blend
SELECTED_ON = "selected_on"
NDCG = "ndcg"
NDCG_POPULARITY = "ndcg_popularity"

# recommendations
REASON = "reason"
DATA_VERSION = "data_version"
MODEL_VERSION = "model_version"

# metrics and runs
SLICE = "slice"
METRIC = "metric"
K = "k"
VALUE = "value"
LOW = "low"
HIGH = "high"
DIFFERENCE = "difference"
DIFFERENCE_LOW = "difference_low"
DIFFERENCE_HIGH = "difference_high"
NUM_USERS = "num_users"
STAGE = "stage"
STARTED_TS = "started_ts"
SECONDS = "seconds"
FIGURES = "figures"
OUTPUTS = "outputs"
SETTINGS_HASH = "settings_hash"

PURCHASE = "purchase"
"""The action that a return takes back."""
RETURN = "return"
"""The action that takes back a purchase; it has no weight of its own."""
UNKNOWN = "unknown"
"""The category of an item that the source gives none; it is never recommended."""
POPULARITY = "popularity"
"""The source that is always made: the baseline to beat, and what serves where nothing could be chosen."""
