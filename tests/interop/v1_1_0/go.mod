module interop/v1_1_0

go 1.23

require (
	github.com/knadh/smtppool v1.1.0
	interop/client v0.0.0
)

replace interop/client => ../client
