"""The scripts that the shared store runs, each atomic. Keys have one hash tag, so a cluster keeps them together.

{prefix}used:<rule>:<start>    what is used of a limit in a window, held and settled together
{prefix}held:<holder>          a hash: what the calls of one process hold of it, by the name of that key
{prefix}holders                when each process's holds are given up, unless it says before that it lives
{prefix}epoch                  a name made when the store was empty: it tells a store that has lost its data
"""

DECIDE = """
local prefix, me = KEYS[1], ARGV[1]
if not redis.call('ZSCORE', prefix .. 'holders', me) then return {-1} end
local answers = {}
for _, work in ipairs(cjson.decode(ARGV[2])) do
  for _, back in ipairs(work[1]) do
    local name, held, spent, holds = back[1], back[2], back[3], prefix .. 'held:' .. back[4]
    local free = 0
    if held > 0 then
      local all = tonumber(redis.call('HGET', holds, name) or '0')
      free = math.min(held, all)
      if free == all then redis.call('HDEL', holds, name)
      elseif free > 0 then redis.call('HINCRBY', holds, name, string.format('%.0f', -free)) end
    end
    if spent ~= free and redis.call('EXISTS', prefix .. name) == 1 then
      redis.call('INCRBY', prefix .. name, string.format('%.0f', spent - free))
    end
  end
  local answer, refused, missing = {0}, 0, false
  for index, take in ipairs(work[2]) do
    local used = redis.call('GET', prefix .. take[1])
    if not used and take[5] then
      missing = true
      answer[index + 1] = -1
    else
      used = tonumber(used or '0')
      answer[index + 1] = used
      if refused == 0 and take[3] >= 0 and used + take[2] > take[3] then refused = index end
    end
  end
  if missing then
    answer[1] = -1
  elseif refused > 0 then
    answer[1] = refused
  else
    for index, take in ipairs(work[2]) do
      local key = prefix .. take[1]
      if take[2] ~= 0 then
        redis.call('INCRBY', key, string.format('%.0f', take[2]))
        redis.call('HINCRBY', prefix .. 'held:' .. me, take[1], string.format('%.0f', take[2]))
      end
      if take[4] > 0 then redis.call('EXPIRE', key, take[4]) end
      answer[index + 1] = answer[index + 1] + take[2]
    end
  end
  answers[#answers + 1] = answer
end
return {0, answers}
"""
"""KEYS: prefix. ARGV: holder; JSON: for each call [gives back, takes], where

gives back   [name, held, spent, holder]: frees what is still held of it, and counts what was spent, where it is known
takes        [name, amount, limit or -1, seconds to live or 0, whether one that is not there has to be seeded]

Returns [-1] when the holder is not known (any more), else [0, answers]; an answer is [what, used of each]: what is 0
when all was taken, the number of the limit that has no room, or -1 when those with used -1 have to be seeded.
"""

BEAT = """
local prefix, lease = KEYS[1], tonumber(ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local holders, known = prefix .. 'holders', 1
for index = 3, #ARGV do
  if ARGV[2] == 'join' or redis.call('ZSCORE', holders, ARGV[index]) then
    redis.call('ZADD', holders, now + lease, ARGV[index])
  elseif index == 3 then
    known = 0
  end
end
local function give_up(holder)
  local holds = redis.call('HGETALL', prefix .. 'held:' .. holder)
  for index = 1, #holds, 2 do
    if redis.call('EXISTS', prefix .. holds[index]) == 1 then
      redis.call('DECRBY', prefix .. holds[index], holds[index + 1])
    end
  end
  redis.call('DEL', prefix .. 'held:' .. holder)
  redis.call('ZREM', holders, holder)
end
for _, holder in ipairs(redis.call('ZRANGEBYSCORE', holders, '-inf', '(' .. now)) do give_up(holder) end
if ARGV[2] == 'leave' then
  for index = 3, #ARGV do give_up(ARGV[index]) end
end
redis.call('SETNX', prefix .. 'epoch', ARGV[3])
return {known, redis.call('GET', prefix .. 'epoch')}
"""
"""KEYS: prefix. ARGV: lease in seconds; join, stay or leave; holders, the present one first.

Says that the holders live, gives up those who did not say so in time, and returns [whether the first one is known,
the store's epoch].
"""
