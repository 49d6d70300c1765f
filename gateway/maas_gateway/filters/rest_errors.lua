-- Turns the transcoder's errors, google.rpc.Status as JSON, into the form that errors have on every REST path:
-- {"error": sentence, "reason": REASON, "code": STATUS_NAME, "details": [...]}.
local NAMES = {
  [1] = "CANCELLED", [2] = "UNKNOWN", [3] = "INVALID_ARGUMENT", [4] = "DEADLINE_EXCEEDED", [5] = "NOT_FOUND",
  [6] = "ALREADY_EXISTS", [7] = "PERMISSION_DENIED", [8] = "RESOURCE_EXHAUSTED", [9] = "FAILED_PRECONDITION",
  [10] = "ABORTED", [11] = "OUT_OF_RANGE", [12] = "UNIMPLEMENTED", [13] = "INTERNAL", [14] = "UNAVAILABLE",
  [15] = "DATA_LOSS", [16] = "UNAUTHENTICATED",
}

-- Returns the JSON string that begins at `start`, without its quotes and still escaped, and where it ends.
local function json_string(text, start)
  local position = start + 1
  while true do
    local found = text:find('["\\]', position)
    if not found then return nil end
    if text:sub(found, found) == '"' then return text:sub(start + 1, found - 1), found end
    position = found + 2
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if tonumber(headers:get(":status")) < 400 or headers:get("content-type") ~= "application/json" then return end
  local body = handle:body()
  if not body then return end
  local text = body:getBytes(0, body:length())
  -- The transcoder prints fields in the order of their numbers: code, message, details.
  local _, after, code = text:find('^{"code":(%d+)')
  if not code then return end
  local message = ""
  local _, quote = text:find('^,"message":"', after + 1)
  if quote then
    message, after = json_string(text, quote)
    if not message then return end
  end
  local name = NAMES[tonumber(code)] or "UNKNOWN"
  -- A quote inside a JSON string has a backslash before it, so no message can look like this.
  local reason = text:match('"reason":"([A-Z0-9_]+)"', after) or name
  local result = '{"error":"' .. message .. '","reason":"' .. reason .. '","code":"' .. name .. '"'
  local details = text:match('^,"details":(%[.*%])}$', after + 1)
  if details then result = result .. ',"details":' .. details end
  local length = body:setBytes(result .. "}")
  headers:replace("content-length", length)
  if name == "UNAVAILABLE" or name == "RESOURCE_EXHAUSTED" then headers:replace("retry-after", "1") end
end
