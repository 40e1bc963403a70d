-- Asks for files in turn, and compares every body with the file's bytes.
local names, contents = {}, {}
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  mismatches = 0
  local dir = arguments[1]
  for at = 2, #arguments do
    local file = assert(io.open(dir .. "/" .. arguments[at], "rb"))
    names[at - 1] = arguments[at]
    contents[at - 1] = file:read("*a")
    file:close()
  end
end

-- wrk does not say which request a body answers; every file begins with its own bytes.
function request()
  return wrk.format("GET", "/f/" .. names[math.random(#names)])
end

function response(status, headers, body)
  for at = 1, #contents do
    if body == contents[at] then
      return
    end
  end
  mismatches = mismatches + 1
end

function done(summary, latency, requests)
  local sum = 0
  for _, thread in ipairs(threads) do
    sum = sum + thread:get("mismatches")
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"bytes":%d,"mismatches":%d,"errors":%d,"stalls":%d,"notes":[]}\n',
    summary.requests, summary.bytes, sum,
    errors.connect + errors.read + errors.write + errors.status, errors.timeout))
end
