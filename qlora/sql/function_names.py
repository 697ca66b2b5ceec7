"""The functions of PostgreSQL and MySQL by name: those that queries may call translated, and others that exist."""

_BOTH = """
    abs ascii avg cast ceil ceiling char_length character_length coalesce concat concat_ws cos count cume_dist
    current_date current_time current_timestamp date degrees dense_rank exp extract first_value floor greatest lag
    last_value lead least left length ln localtime localtimestamp log lower lpad ltrim max md5 min mod now nth_value
    ntile nullif octet_length percent_rank pi position pow power radians rank regexp_replace repeat replace reverse
    right round row_number rpad rtrim sign sin sqrt stddev stddev_pop stddev_samp substr substring sum trim upper
    var_pop var_samp variance acos asin atan atan2 cot tan grouping
"""
_POSTGRES = """
    age array_agg bool_and bool_or btrim cbrt chr corr date_part date_trunc div every initcap make_date mode
    percentile_cont percentile_disc split_part starts_with string_agg strpos to_char to_timestamp translate trunc
    overlay transaction_timestamp to_date generate_series unnest array_length array_to_string array_position
    array_remove array_append string_to_array cardinality json_array_elements json_array_elements_text
    json_array_length json_object_keys jsonb_array_elements jsonb_array_elements_text jsonb_array_length
    jsonb_object_keys json_typeof jsonb_typeof json_extract_path json_extract_path_text jsonb_extract_path
    jsonb_extract_path_text jsonb_exists regr_slope regr_intercept width_bucket format to_hex sha256 make_interval
    num_nulls num_nonnulls quote_literal isfinite regexp_count regexp_match gcd lcm factorial
"""
_MYSQL = """
    adddate any_value convert curdate curtime date_add date_format date_sub datediff day dayname dayofmonth
    dayofweek dayofyear elt field find_in_set format group_concat hour if ifnull instr isnull last_day lcase locate
    log10 log2 mid minute month monthname quarter regexp_like second space std subdate substring_index sysdate time
    timestampdiff truncate ucase unix_timestamp utc_timestamp week weekday weekofyear year from_unixtime bit_and
    bit_or char values bit_xor bit_count soundex hex insert regexp_substr regexp_instr maketime adddate subdate
    sec_to_time time_to_sec timediff addtime subtime makedate from_days to_days period_add period_diff yearweek
    microsecond strcmp conv bin oct inet_aton quote ord sha sha1 sha2 str_to_date timestampadd json_extract
    json_unquote json_contains json_length json_valid
"""
TRANSLATED = {
    "postgres": frozenset((_BOTH + _POSTGRES).split()),
    "mysql": frozenset((_BOTH + _MYSQL).split()),
}
_EXISTING_POSTGRES = """
    acos acosd array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_json array_to_string array_upper asin atan
    atan2 bit_and bit_or bit_xor bit_length cardinality clock_timestamp convert convert_from convert_to cot
    covar_pop covar_samp current_database current_schema current_setting current_user date_bin decode encode erf
    factorial format gcd gen_random_uuid generate_series generate_subscripts get_bit get_byte grouping isfinite
    json_agg json_array_elements json_array_elements_text json_array_length json_build_array json_build_object
    json_each json_each_text json_extract_path json_extract_path_text json_object json_object_agg json_object_keys
    json_populate_record json_strip_nulls json_to_record json_typeof jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_exists jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_agg
    jsonb_object_keys jsonb_path_exists jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty
    jsonb_set jsonb_strip_nulls jsonb_typeof justify_days justify_hours justify_interval lcm make_interval make_time
    make_timestamp make_timestamptz min_scale normalize num_nonnulls num_nulls parse_ident pg_typeof plainto_tsquery
    quote_ident quote_literal quote_nullable random range_agg regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_split_to_array regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_to_json scale session_user set_bit set_byte
    sha224 sha256 sha384 sha512 sind sinh statement_timestamp string_to_array string_to_table tan tand tanh
    timeofday timezone to_ascii to_date to_hex to_json to_jsonb to_number to_tsquery to_tsvector trim_array
    trim_scale ts_headline ts_rank tsrange daterange int4range numrange unnest upper_inf lower_inf user
    uuid_generate_v4 version websearch_to_tsquery width_bucket xmlagg similarity unaccent crosstab
"""
_EXISTING_MYSQL = """
    acos addtime aes_decrypt aes_encrypt asin atan atan2 avg benchmark bin bit_count bit_length bit_xor charset
    coercibility collation compress connection_id conv convert_tz cot crc32 database default export_set extractvalue
    found_rows from_base64 from_days get_format greatest grouping hex inet6_aton inet6_ntoa inet_aton inet_ntoa
    insert is_ipv4 is_ipv6 json_array json_array_append json_array_insert json_arrayagg json_contains
    json_contains_path json_depth json_extract json_insert json_keys json_length json_merge json_merge_patch
    json_merge_preserve json_object json_objectagg json_overlaps json_pretty json_quote json_remove json_replace
    json_search json_set json_table json_type json_unquote json_valid json_value last_insert_id load_file make_set
    makedate maketime match microsecond oct ord password period_add period_diff quote rand regexp_instr
    regexp_substr row_count schema sec_to_time session_user sha sha1 sha2 sleep soundex st_distance st_x st_y
    str_to_date strcmp subtime system_user tan time_format time_to_sec timediff timestamp timestampadd to_base64
    to_days to_seconds uncompress unhex updatexml user utc_date utc_time uuid uuid_short version weight_string
    yearweek
"""
EXISTING = {"postgres": frozenset(_EXISTING_POSTGRES.split()), "mysql": frozenset(_EXISTING_MYSQL.split())}
