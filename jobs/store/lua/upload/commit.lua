-- Make an uploaded batch live.
-- KEYS, ARGV and what is returned: see the shared piece, which steps of other packages use too.
return require("jobs.store.lua.shared.commit")(KEYS, ARGV)
