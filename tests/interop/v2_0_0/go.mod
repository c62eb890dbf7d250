module interop/v2_0_0

go 1.23

require (
	github.com/knadh/smtppool/v2 v2.0.0
	interop/client v0.0.0
)

replace interop/client => ../client
