// Asks an endpoint picker where requests go, as Envoy would (ext_proc v3): picker ADDRESS MODEL...
// For each model it prints the pod's address that the picker chose, or what it answered instead.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const chosen = "x-gateway-destination-endpoint"

func ask(client extproc.ExternalProcessorClient, model string) (string, error) {
	body, err := json.Marshal(map[string]any{
		"model":    model,
		"messages": []map[string]string{{"role": "user", "content": "hello"}},
	})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := client.Process(ctx)
	if err != nil {
		return "", err
	}
	headers := &core.HeaderMap{Headers: []*core.HeaderValue{
		{Key: ":method", RawValue: []byte("POST")},
		{Key: ":path", RawValue: []byte("/v1/chat/completions")},
		{Key: "content-type", RawValue: []byte("application/json")},
	}}
	for _, request := range []*extproc.ProcessingRequest{
		{Request: &extproc.ProcessingRequest_RequestHeaders{
			RequestHeaders: &extproc.HttpHeaders{Headers: headers},
		}},
		{Request: &extproc.ProcessingRequest_RequestBody{
			RequestBody: &extproc.HttpBody{Body: body, EndOfStream: true},
		}},
	} {
		if err := stream.Send(request); err != nil {
			return "", err
		}
	}
	answer, err := stream.Recv()
	if err != nil {
		return "", err
	}
	if refused := answer.GetImmediateResponse(); refused != nil {
		return fmt.Sprintf("%v %s", refused.GetStatus().GetCode(), refused.GetBody()), nil
	}
	for _, set := range answer.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if set.GetHeader().GetKey() == chosen {
			return string(set.GetHeader().GetRawValue()), nil
		}
	}
	return "", fmt.Errorf("no %s in %v", chosen, answer)
}

func main() {
	connection, err := grpc.NewClient(
		os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	client := extproc.NewExternalProcessorClient(connection)
	for _, model := range os.Args[2:] {
		endpoint, err := ask(client, model)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %s\n", model, endpoint)
	}
}
