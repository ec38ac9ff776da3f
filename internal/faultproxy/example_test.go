package faultproxy_test

import (
	"bufio"
	"fmt"
	"log"
	"net"

	"github.com/surgewall/surgewall/internal/faultproxy"
)

// A client whose question is answered, and that does not hear the answer.
func ExampleLoseReply() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Print("the server: ", line)
		fmt.Fprintln(c, "done")
	}()

	p, err := faultproxy.Start(server.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	hook, lost := faultproxy.LoseReply("commit", faultproxy.Cut)
	p.Intercept(hook)

	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "COMMIT")
	<-lost
	<-served
	_, err = bufio.NewReader(c).ReadString('\n')
	fmt.Println("the client heard an answer:", err == nil)
	// Output:
	// the server: COMMIT
	// the client heard an answer: false
}
