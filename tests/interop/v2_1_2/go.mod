module interop/v2_1_2

go 1.23

require (
	github.com/knadh/smtppool/v2 v2.1.2
	interop/client v0.0.0
)

replace interop/client => ../client
