"""The few scripts that a run is kept with. Each has its effect once, however often it is sent.

A script is one step to everybody else, which is what makes a compare-and-set and a ticket with
its record atomic. All keys of a run share a hash tag, so that they are on one server of a Cluster.
"""

from __future__ import annotations

from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES, MAX_TICKETS

from .wire import Script

__all__ = [
    "BEAT",
    "ENTER",
    "FETCH",
    "FORGET",
    "NAME",
    "PROBE",
    "PUBLISH",
    "READ",
    "RECORDS",
    "SWAP",
]

NAME = 16
"""The length of a record's name: it tells two records of the same bytes from one sent twice."""

_LIMIT = f"""
local function checked(length)
  if length > {MAX_STATE_BYTES} then
    error({{err = 'RDZV-FOREIGN a value of ' .. length .. ' bytes, more than rdzv writes'}})
  end
end
"""

READ = Script(
    _LIMIT
    + """
-- KEYS: the document. Returns its token and its text, or nothing.
checked(redis.call('HSTRLEN', KEYS[1], 'text'))
checked(redis.call('HSTRLEN', KEYS[1], 'token'))
local found = redis.call('HMGET', KEYS[1], 'token', 'text')
if not (found[1] and found[2]) then
  if found[1] or found[2] then
    error({err = 'RDZV-FOREIGN half a document'})
  end
  return {}
end
return found
"""
)

SWAP = Script(
    _LIMIT
    + """
-- KEYS: the document. ARGV: the token that is expected or '', the new token's random part, the new
-- text, how many failovers the writer knows of or '', the time to live (ms), the channel or ''.
-- Returns whether it is this write that is stored, the token, the text, the number of failovers;
-- nothing where there is nothing although a token was expected.
checked(redis.call('HSTRLEN', KEYS[1], 'text'))
checked(redis.call('HSTRLEN', KEYS[1], 'token'))
local found = redis.call('HMGET', KEYS[1], 'token', 'text', 'server', 'failovers')
local token, text, failovers = found[1], found[2], tonumber(found[4] or 0)
local version = 0
if token then
  version = tonumber(string.match(token, '^(%d+)-%w+$'))
  if not version or not text or not failovers then
    error({err = 'RDZV-FOREIGN a document that rdzv did not write'})
  end
  if token == string.format('%d-%s', version, ARGV[2]) then
    return {1, token, text, failovers}
  end
  if token ~= ARGV[1] then
    return {0, token, text, failovers}
  end
elseif text then
  error({err = 'RDZV-FOREIGN half a document'})
elseif ARGV[1] ~= '' then
  return {}
end
-- Another server than the one that took the last write may lack writes that were acknowledged.
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
if token and found[3] ~= server then
  failovers = failovers + 1
  redis.call('HSET', KEYS[1], 'server', server, 'failovers', failovers)
end
if token and ARGV[4] ~= '' and tonumber(ARGV[4]) ~= failovers then
  return {0, token, text, failovers}
end
token = string.format('%d-%s', version + 1, ARGV[2])
redis.call('HSET', KEYS[1], 'token', token, 'text', ARGV[3], 'server', server,
  'failovers', failovers)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
-- Nobody can wait for what replaces nothing.
if ARGV[6] ~= '' and version > 0 then
  redis.call('PUBLISH', ARGV[6], token .. ' ' .. ARGV[3])
end
return {1, token, ARGV[3], failovers}
"""
)

ENTER = Script("""
-- KEYS: the log, the tickets by the names of their records. ARGV: the record's name, the record,
-- the time to live (ms), the channel. Returns the ticket; of a record sent twice, the first.
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then
  return tonumber(known)
end
local ticket = redis.call('HINCRBY', KEYS[1], 'tail', 1)
redis.call('HSET', KEYS[1], ticket, ARGV[1] .. ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ticket)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', ARGV[4], ticket)
return ticket
""")

RECORDS = Script(
    _LIMIT
    + f"local TICKETS = {MAX_TICKETS}"
    + """
-- KEYS: the log. ARGV: a ticket, the most to return. Returns the records of the tickets above it,
-- each after its name.
local tail = tonumber(redis.call('HGET', KEYS[1], 'tail') or 0)
if not tail or tail < 0 or tail > TICKETS then
  error({err = 'RDZV-FOREIGN a tail that is no number'})
end
local records = {}
for ticket = ARGV[1] + 1, math.min(tail, ARGV[1] + ARGV[2]) do
  local record = redis.call('HGET', KEYS[1], ticket)
  checked(record and #record or 0)
  records[#records + 1] = record
end
return records
"""
)

BEAT = Script("""
-- KEYS: the beats, and all others whose time to live is to be renewed. ARGV: the slot, the first
-- and the last of the slots that come along, the time to live (ms) or 0.
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
local slots = {}
for slot = ARGV[2], ARGV[3] do
  slots[#slots + 1] = slot
end
if ARGV[4] ~= '0' then
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, ARGV[4])
  end
end
return redis.call('HMGET', KEYS[1], unpack(slots))
""")

PUBLISH = Script("""
-- KEYS: the pieces. ARGV: the time to live (ms), then names and texts in turn.
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
""")

FETCH = Script(
    _LIMIT
    + """
-- KEYS: the pieces. ARGV: their names.
local pieces = {}
for _, name in ipairs(ARGV) do
  checked(redis.call('HSTRLEN', KEYS[1], name))
  pieces[#pieces + 1] = redis.call('HGET', KEYS[1], name)
end
return pieces
"""
)

FORGET = Script(f"""
-- KEYS: the log, the tickets by the names of their records, the pieces. ARGV: the records above the
-- first and up to the second of two tickets are forgotten, and the pieces that the others name.
for ticket = ARGV[1] + 1, ARGV[2] do
  local record = redis.call('HGET', KEYS[1], ticket)
  if record then
    redis.call('HDEL', KEYS[1], ticket)
    redis.call('HDEL', KEYS[2], string.sub(record, 1, {NAME}))
  end
end
for place = 3, #ARGV do
  redis.call('HDEL', KEYS[3], ARGV[place])
end
return 0
""")

PROBE = Script("""
-- KEYS: two keys of its own. ARGV: a channel. Does all that the others and the store do, to see
-- whether it may. Leaves a list of one at the second key.
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'tail', 0)
redis.call('PEXPIRE', KEYS[1], 1000)
redis.call('PTTL', KEYS[1])
redis.call('HINCRBY', KEYS[1], 'tail', 1)
redis.call('HSTRLEN', KEYS[1], 'tail')
redis.call('HEXISTS', KEYS[1], 'tail')
redis.call('HLEN', KEYS[1])
redis.call('HKEYS', KEYS[1])
redis.call('HGET', KEYS[1], 'tail')
redis.call('HMGET', KEYS[1], 'tail')
redis.call('HDEL', KEYS[1], 'tail')
redis.call('SADD', KEYS[2], '')
redis.call('SMEMBERS', KEYS[2])
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[2], '')
redis.call('PEXPIRE', KEYS[2], 1000)
redis.call('INFO', 'server')
redis.call('PUBLISH', ARGV[1], '')
return 0
""")
