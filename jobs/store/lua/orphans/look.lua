-- Those of some shards that are nowhere.
-- KEYS: info, uploading.
-- ARGV: batch id, prefix of compacted records, JSON: queues, numbers of shards.
-- Returns their numbers.
local nowhere = require("jobs.store.lua.shared.nowhere")

local found = {}
for _, number in pairs(nowhere(KEYS[1], KEYS[2], ARGV[1], ARGV[2], cjson.decode(ARGV[3]), cjson.decode(ARGV[4]))) do
  found[#found + 1] = number
end
return found
