-- For luacheck: the scripts that Redis runs, and what Redis gives them.
std = "lua51"
read_globals = {"redis", "cjson", "cmsgpack", "struct", "bit", "KEYS", "ARGV"}
max_line_length = 120
