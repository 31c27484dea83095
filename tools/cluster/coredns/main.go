// Command coredns is CoreDNS with the plugins that the local cluster's Corefile names. The full program also
// compiles the clients of three clouds, which is half of its build.
package main

import (
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func main() {
	coremain.Run()
}
